"""The interface of a loop, and the loop that runs steps one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import check_positive_integer
from ..norms import Measure, extreme, out_of_range
from ..problem import Problem
from ..rules.rule import RestartingSolver, Solver
from ..state import select, tree_leaves
from .recording import recorded
from .transfer import Transfer

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Stretch(NamedTuple):
    """The result of some steps: the points at which `f` was evaluated, their norms, and where the next step starts."""

    points: list[Tensor]
    norms: Tensor  # (2·points, rows): ‖f(z) − z‖ and ‖f(z)‖ of each
    image: Tensor  # of the last point
    residual: Tensor  # likewise
    memory: Any
    fresh: bool = False  # no step has been taken yet
    exact: bool = False  # the norms are free of over- and underflow
    spent: Sequence[tuple[int, Integers]] = ()  # by position, (rows,) evaluations within steps, beyond one per step

    def first(self, count: int) -> Stretch:
        """The stretch cut to its first `count` points, which can then be read but no longer continued from."""
        if len(self.points) <= count:
            return self
        return self._replace(points=self.points[:count], norms=self.norms[: 2 * count])

    def joined(self, following: Stretch) -> Stretch:
        """This stretch and the one after it as one."""
        points, norms = [*self.points, *following.points], torch.cat((self.norms, following.norms))
        return following._replace(points=points, norms=norms)

    def take(self, rows: Tensor) -> Stretch:
        """The stretch of the rows at these positions, with its last point only."""
        last = [self.points[-1].index_select(0, rows)]
        return Stretch(last, self.norms, *select((self.image, self.residual, self.memory), rows))

    def exact_norms(self, found: Tensor, measure: Measure) -> Floats:
        """A copy of its norms, `found` on the host, recomputed where squares have left the range of the dtype."""
        norms, dtype = np.array(found.numpy(), dtype=np.float64), self.residual.dtype
        if self.exact or not extreme(norms, dtype):
            return norms
        return np.where(out_of_range(norms, dtype), measure.on_host(self.residual, self.image), norms)


class Hold(NamedTuple):
    """What the host has decided about rows for the next stretch; None: nothing."""

    rows: Tensor | None  # (rows,) bool: those that do not move
    best: Tensor  # (rows, dim): where they are held
    restart: Tensor | None  # (rows,) bool: those whose history is dropped in the first step
    back: Tensor | None = None  # (rows,) bool: those put back there in the first step, to begin anew in the second

    @property
    def redirects(self) -> bool:
        """Whether a row continues otherwise than by the solver."""
        return self.restart is not None or self.back is not None


class Loop(ABC):
    """How the steps between two checks of the residuals are run.

    It changes when the host waits, and not the result of a row that converges without beginning anew.
    """

    check_every: int
    fixed_shapes: ClassVar[bool] = False
    """Whether every step must have the same number of rows."""
    pipelined: ClassVar[bool] = False
    """Whether it may begin steps before the last ones have been checked."""

    @contextmanager
    def open(self, problem: Problem, most: int) -> Iterator[Loop]:
        """The loop for one solve of at most this many steps."""
        yield self

    def begin(
        self, problem: Problem, solver: Solver, measure: Measure, z: Tensor, pair: tuple[Tensor, Tensor] | None
    ) -> Stretch:
        """The first evaluation, and any steps that the loop runs along with it."""
        return begin(problem, solver, measure, z, pair, self.robust)

    def evaluate(self, problem: Problem, measure: Measure, z: Tensor, last: Stretch) -> Stretch:
        """One more evaluation, at z, without a step."""
        image, residual, norms = problem.measured(z, last.image, measure, robust=False)
        return last._replace(points=[z], norms=norms, image=image, residual=residual, exact=False, spent=())

    @property
    def robust(self) -> bool:
        """As in `Norm.measure`, for all points alike: rounding must not decide between residuals that are equal.

        Of several steps only the last residual is kept, so the norms of the others cannot be computed again.
        """
        return self.check_every > 1

    @property
    def expected(self) -> int:
        """The number of steps that the solve is expected to take; 0: unknown."""
        return 0

    @property
    def steady(self) -> bool:
        """Whether the last solve of this kind went on as its stretches had begun."""
        return True

    def took(self, steps: int, steady: bool) -> None:  # noqa: B027, most loops keep nothing
        """Note how many steps the solve took, and whether it was steady, for later ones of its kind."""

    def span(self, missing: float, room: int) -> int:
        """How many of the next `room` steps to run before the next check, if some row is expected to need `missing`."""
        return self.check_every

    def ahead(self, hold: Hold, span: int) -> Stretch | None:
        """`span` steps after those of the last `run`, begun before these have been checked; None if not possible."""
        return None

    def transfer(self) -> Transfer:
        """The object that copies norms to the host."""
        return Transfer()

    def kept(self, point: Tensor) -> Tensor:
        """A point of the last steps, in a form that outlasts the next ones."""
        return point

    @abstractmethod
    def run(self, problem: Problem, solver: Solver, measure: Measure, start: Stretch, room: int, hold: Hold) -> Stretch:
        """The next steps, at most `room` of them."""


@dataclass(frozen=True)
class Eager(Loop):
    """The default: operations are launched one by one."""

    check_every: int = 1
    """Steps between two checks of the residuals, each of which waits for a GPU. Larger values waste up to check_every
    evaluations. They do not change the result of a converged row, unless its solver had to forget its history, or had
    to be put back where f is finite, which then happens later."""

    def __post_init__(self) -> None:
        check_positive_integer(self, "check_every")

    def run(self, problem: Problem, solver: Solver, measure: Measure, start: Stretch, room: int, hold: Hold) -> Stretch:
        return advance(problem, solver, measure, start, min(self.check_every, room), hold, self.robust)


def begin(
    problem: Problem,
    solver: Solver,
    measure: Measure,
    z: Tensor,
    pair: tuple[Tensor, Tensor] | None,
    robust: bool,
) -> Stretch:
    """The first evaluation, unless its result is known, and the first memory.

    Args:
        z: passed to `f` and to the solver, so it must not be the caller's tensor.
        pair: the image and the residual, if known.
        robust: as in `Norm.measure`.
    """
    if pair is not None:
        image, residual, norms = *pair, measure(pair[1], pair[0], robust)
    elif recorded():  # the run before it was checked
        image, residual, norms = problem.measured(z, z, measure, robust)
    else:
        image, residual, norms = problem.first(z, measure, robust)
    return Stretch([z], norms, image, residual, solver.init(z), fresh=True, exact=robust)


def advance(
    problem: Problem, solver: Solver, measure: Measure, start: Stretch, steps: int, hold: Hold, robust: bool
) -> Stretch:
    """Run `steps` steps of the solver, each followed by an evaluation.

    Args:
        robust: as in `Norm.measure`.
    """
    points, norms, spent = [], [], []
    z, image, residual, memory = start.points[-1], start.image, start.residual, start.memory
    for count in range(steps):
        if start.fresh and count == 0 and not (torch.compiler.is_compiling() or recorded()):
            proposal, memory = _checked_step(solver, memory, z, image, residual)
        else:
            proposal, memory = solver.step(memory, z, image, residual)
        if problem.spent is not None:
            spent.append((count, problem.spent))
            problem.spent = None
        anew = hold.restart if count == 0 else hold.back if count == 1 else None
        if anew is not None and isinstance(solver, RestartingSolver):
            memory = solver.forget(memory, anew)
            proposal = torch.where(anew[:, None], image, proposal)
        for held in (hold.rows, hold.back if count == 0 else None):
            if held is not None:
                proposal = torch.where(held[:, None], hold.best, proposal)
        z = problem.layout.representable(proposal)
        image, residual, found = problem.measured(z, image, measure, robust)
        points.append(z)
        norms.append(found)
    norms_of_all = norms[0] if steps == 1 else torch.cat(norms)
    return Stretch(points, norms_of_all, image, residual, memory, exact=robust, spent=spent)


def _checked_step(solver: Solver, memory: Any, z: Tensor, image: Tensor, residual: Tensor) -> tuple[Tensor, Any]:
    """`solver.step`, which may be a user's, checked as `f` is."""
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
        raise ValueError(f"{name} writes into z, fz or residual: it may write only into its memory")
    if (proposal.shape, proposal.dtype, proposal.device) != (z.shape, z.dtype, z.device):
        raise ValueError(
            f"{name} proposes {tuple(proposal.shape)} {proposal.dtype} on {proposal.device} for a state of "
            f"{tuple(z.shape)} {z.dtype} on {z.device}: keep shape, dtype and device"
        )
    for leaf in tree_leaves(memory):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or len(leaf) != len(z)):
            raise ValueError(
                f"{name} keeps a tensor of shape {tuple(leaf.shape)} in its memory for {len(z)} rows: each tensor in "
                "the memory must have the rows in dim 0; keep single numbers as Python numbers"
            )
    return proposal, memory
