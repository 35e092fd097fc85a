"""Steps run one after the other, and what a loop is."""

from __future__ import annotations

import gc
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import check_positive_integer
from ..norms import Measure, extreme, out_of_range
from ..problem import Problem, select
from ..rules.rule import RestartingSolver, Solver
from ..state import tree_leaves
from .transfer import Transfer

Floats = NDArray[np.float64]


class Stretch(NamedTuple):
    """What some steps leave: the points at which `f` was evaluated, the norms there, and where the next step starts."""

    points: list[Tensor]
    norms: Tensor  # (2·points, rows): ‖f(z) − z‖ and ‖f(z)‖ of each
    image: Tensor  # of the last point
    residual: Tensor  # likewise
    memory: Any
    fresh: bool = False  # no step has been taken yet
    exact: bool = False  # the norms neither over- nor underflow

    def first(self, count: int) -> Stretch:
        """Without the points after so many; it then serves to read them, no longer to go on."""
        if len(self.points) <= count:
            return self
        return self._replace(points=self.points[:count], norms=self.norms[: 2 * count])

    def take(self, rows: Tensor) -> Stretch:
        """The last point of the rows at these positions."""
        last = [self.points[-1].index_select(0, rows)]
        return Stretch(last, self.norms, *select((self.image, self.residual, self.memory), rows))

    def exact_norms(self, found: Tensor, measure: Measure) -> Floats:
        """A copy of its norms, `found` on the host, anew where squares have left the range of the dtype."""
        norms, dtype = np.array(found.numpy(), dtype=np.float64), self.residual.dtype
        if self.exact or not extreme(norms, dtype):
            return norms
        return np.where(out_of_range(norms, dtype), measure.on_host(self.residual, self.image), norms)


class Hold(NamedTuple):
    """What the host has decided about rows for the next stretch; None: nothing."""

    rows: Tensor | None  # (rows,) bool: those that do not move
    best: Tensor  # (rows, dim): where they are held
    restart: Tensor | None  # (rows,) bool: those whose history is dropped in the first step


class Loop(ABC):
    """How the steps between two checks of the residuals are run. It changes when the host waits, not the result."""

    check_every: int
    fixed_shapes: ClassVar[bool] = False
    """Whether it needs as many rows in each step."""
    pipelined: ClassVar[bool] = False
    """Whether it may begin steps ahead."""

    @contextmanager
    def open(self, problem: Problem) -> Iterator[Loop]:
        """The loop for one solve."""
        yield self

    def begin(
        self, problem: Problem, solver: Solver, measure: Measure, z: Tensor, pair: tuple[Tensor, Tensor] | None
    ) -> Stretch:
        """The first evaluation, and what other steps the loop takes along."""
        return begin(problem, solver, measure, z, pair)

    def evaluate(self, problem: Problem, measure: Measure, z: Tensor, last: Stretch) -> Stretch:
        """One more evaluation, at z, without a step."""
        image, residual, norms = problem.measured(z, last.image, measure, robust=False)
        return last._replace(points=[z], norms=norms, image=image, residual=residual, exact=False)

    def span(self, missing: float) -> int:
        """How many steps to run before the next look, where some row is expected to need so many."""
        return self.check_every

    def ahead(self, hold: Hold, span: int) -> Stretch | None:
        """So many after those of the last `run`, begun before these have been looked at; None: it cannot."""
        return None

    def transfer(self) -> Transfer:
        """What takes norms to the host."""
        return Transfer()

    def kept(self, point: Tensor) -> Tensor:
        """A point of the last steps, as it is to be kept beyond the next ones."""
        return point

    @abstractmethod
    def run(self, problem: Problem, solver: Solver, measure: Measure, start: Stretch, room: int, hold: Hold) -> Stretch:
        """The next steps, at most `room` of them."""


@dataclass(frozen=True)
class Eager(Loop):
    """Operations are launched one by one. The default."""

    check_every: int = 1
    """Steps between two checks of the residuals, each of which waits for a GPU. A converged row has the same result,
    after up to check_every wasted evaluations; a solver that is made to forget its history does so later."""

    def __post_init__(self) -> None:
        check_positive_integer(self, "check_every")

    def run(self, problem: Problem, solver: Solver, measure: Measure, start: Stretch, room: int, hold: Hold) -> Stretch:
        return advance(problem, solver, measure, start, min(self.check_every, room), hold)


def begin(
    problem: Problem,
    solver: Solver,
    measure: Measure,
    z: Tensor,
    pair: tuple[Tensor, Tensor] | None,
    robust: bool = False,
) -> Stretch:
    """The first evaluation, unless its result is known, and the first memory.

    Args:
        z: is handed to `f` and to the solver, and so must not be the caller's.
        pair: the image and the residual, where they are known.
        robust: as in `Norm.measure`.
    """
    image, residual, norms = (*pair, measure(pair[1], pair[0])) if pair else problem.first(z, measure, robust)
    return Stretch([z], norms, image, residual, solver.init(z), fresh=True, exact=robust)


def advance(
    problem: Problem,
    solver: Solver,
    measure: Measure,
    start: Stretch,
    steps: int,
    hold: Hold,
    robust: bool = False,
) -> Stretch:
    """`steps` times a step of the solver and an evaluation.

    Args:
        robust: as in `Norm.measure`; always so for more than one step, of whose residuals only the last is at hand.
    """
    robust |= steps > 1
    points, norms = [], []
    z, image, residual, memory = start.points[-1], start.image, start.residual, start.memory
    for count in range(steps):
        if start.fresh and count == 0 and not torch.compiler.is_compiling():
            proposal, memory = _checked_step(solver, memory, z, image, residual)
        else:
            proposal, memory = solver.step(memory, z, image, residual)
        if count == 0 and hold.restart is not None and isinstance(solver, RestartingSolver):
            memory = solver.forget(memory, hold.restart)
            proposal = torch.where(hold.restart[:, None], image, proposal)
        if hold.rows is not None:
            proposal = torch.where(hold.rows[:, None], hold.best, proposal)
        z = problem.layout.representable(proposal)
        image, residual, found = problem.measured(z, image, measure, robust)
        points.append(z)
        norms.append(found)
    norms_of_all = norms[0] if steps == 1 else torch.cat(norms)
    return Stretch(points, norms_of_all, image, residual, memory, exact=robust)


def _checked_step(solver: Solver, memory: Any, z: Tensor, image: Tensor, residual: Tensor) -> tuple[Tensor, Any]:
    """`solver.step`, which may be a user's, looked at as `f` is."""
    given, name = (z, image, residual), f"{type(solver).__name__}.step"
    inference = z.is_inference()
    before: list[Any] = [x.clone() for x in given] if inference else [x._version for x in given]
    result: Any = solver.step(memory, z, image, residual)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor)):
        raise TypeError(f"{name} returned a {type(result).__name__}: return the next iterate and the memory")
    proposal, memory = result
    if (
        not all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(given, before))
        if inference
        else before != [x._version for x in given]
    ):
        raise ValueError(f"{name} writes into z, fz or residual: it may write into its memory only")
    if (proposal.shape, proposal.dtype, proposal.device) != (z.shape, z.dtype, z.device):
        raise ValueError(
            f"{name} proposes {tuple(proposal.shape)} {proposal.dtype} on {proposal.device} for a state of "
            f"{tuple(z.shape)} {z.dtype} on {z.device}: keep shape, dtype and device"
        )
    for leaf in tree_leaves(memory):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or len(leaf) != len(z)):
            raise ValueError(
                f"{name} remembers a tensor of shape {tuple(leaf.shape)} for {len(z)} rows: each tensor of the memory "
                "has the rows in dim 0, numbers are plain numbers"
            )
    return proposal, memory


_recorded = threading.local()


@contextmanager
def recording() -> Iterator[None]:
    """Within it nothing is solved, and no recording that is no longer used is freed: a capture cannot contain that."""
    collects, _recorded.now = gc.isenabled(), True
    gc.disable()
    try:
        yield
    finally:
        _recorded.now = False
        if collects:
            gc.enable()


def refuse_solve() -> None:
    """Raise where steps are being recorded."""
    if getattr(_recorded, "now", False):
        raise RuntimeError("f solves a problem of its own, whose length depends on its data")
