"""Plain steps, `z ← f(z)`, without reading the residuals."""

from __future__ import annotations

from torch import Tensor

from ..norms import Measure, Norm
from ..problem import Problem
from ..rules.picard import Picard
from .eager import Hold, Loop
from .recording import recorded


class Unmeasured(Norm):
    """Arbitrary numbers, where nobody reads them: neither they nor residuals are computed."""

    def measure(self, residual: Tensor, image: Tensor, rtol: float, atol: float, robust: bool) -> Tensor:
        return image.new_empty(2, len(image))

    def difference(self, image: Tensor, z: Tensor, rtol: float, atol: float, robust: bool) -> tuple[Tensor, Tensor]:
        return image, self.measure(image, image, rtol, atol, robust)


_UNREAD = Measure(Unmeasured(), 0.0, 0.0)


def plain_steps(problem: Problem, loop: Loop, z: Tensor, most: int) -> tuple[Tensor, int]:
    """The iterate after as many whole stretches of the loop as fit in `most` steps, and how many steps these are.

    The remaining steps, at most `check_every` or, while a caller's are recorded, all of them, are left to the caller,
    so no step is wasted. The host does not wait for a GPU.
    """
    every = loop.check_every
    if most <= every or recorded():  # the caller's steps become part of that recording
        return z, 0
    with loop.open(problem, most) as opened:
        stretch = opened.begin(problem, Picard(), _UNREAD, z, None)
        taken = len(stretch.points)
        while taken + every <= most:
            stretch = opened.run(problem, Picard(), _UNREAD, stretch, every, Hold(None, z, None))
            taken += len(stretch.points)
        return opened.kept(stretch.image), taken
