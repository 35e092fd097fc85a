"""Plain steps, `z ← f(z)`, whose residuals nobody reads."""

from __future__ import annotations

from torch import Tensor

from ..norms import Euclidean, Measure
from ..problem import Problem
from ..rules.picard import Picard
from .eager import Hold, Loop

_UNREAD = Measure(Euclidean(), 0.0, 0.0)


def plain_steps(problem: Problem, loop: Loop, z: Tensor, most: int) -> tuple[Tensor, int]:
    """The iterate after as many whole stretches of the loop as fit in `most` steps, and how many steps these are.

    What is left over, fewer than `check_every` and one, is for the caller: no step is taken in vain. Nothing waits for
    a GPU.
    """
    every = loop.check_every
    if most <= every:
        return z, 0
    with loop.open(problem) as opened:
        stretch = opened.begin(problem, Picard(), _UNREAD, z, None)
        taken = len(stretch.points)
        while taken + every <= most:
            stretch = opened.run(problem, Picard(), _UNREAD, stretch, every, Hold(None, z, None))
            taken += len(stretch.points)
        return opened.kept(stretch.image), taken
