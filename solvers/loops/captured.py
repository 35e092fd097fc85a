"""Stretches of steps recorded once, as CUDA graphs, and replayed in later solves of the same shapes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..checks import check_positive_integer
from ..norms import Measure
from ..problem import Problem
from ..rules.rule import Solver
from .captures import Captures, Source
from .eager import Hold, Loop, Stretch, advance, begin
from .recording import RecordingError, without_frames
from .tape import Tape
from .transfer import Transfer

LONGEST = 10
"""Largest number of stretches that are recorded as one, with one check, while rows are far from converged."""
AFTER = 32
"""Number of stretches after which those of a function are recorded: its recordings last for one solve, and a recording
takes as long as some hundred steps."""
MOST = 2**22
"""Entries of all states of such a stretch at most: of large states, a stretch takes longer than a check anyway."""


@dataclass(frozen=True)
class Captured(Loop):
    """CUDA graphs of stretches of `check_every` steps, f included, recorded once and replayed.

    Prefer it where the operations of f take less time on a GPU than their launches. A layer keeps its graphs, forward
    and backward, keyed by the shapes and dtypes of its inputs, the modes, and the addresses of its parameters. The
    first solve of a kind runs as with `Eager`, the next ones warm up and record. In-place updates (optimisers,
    `load_state_dict`) and new inputs take effect in replays; moving or replacing a parameter causes a new recording.
    Statuses, steps and values are those of `Eager(check_every)`. Needs fixed shapes, that is compact=False, and a
    solver with a fixed cost per step.

    On a CPU the same buffers are used and the steps are called instead of replayed, so nothing is gained. The function
    of `solve`, `root` and `fixed_point` may read tensors that are unknown here, and has no layer to keep its graphs:
    they last for one solve, and are recorded only once it has taken 32 stretches. A cell that itself solves a problem
    runs as with `Eager`; the steps of the inner solve are recorded instead.
    """

    check_every: int = 8
    """Steps between two checks of the residuals. The last stretch runs past the last step, by fewer than check_every
    evaluations, whose results are discarded. If the residuals fall faster than before, one more stretch is wasted.
    Small states are checked less often while some row appears to be far from converged."""

    fixed_shapes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive_integer(self, "check_every")

    @contextmanager
    def open(self, problem: Problem, most: int) -> Iterator[Loop]:
        source, captures = None, problem.captures
        if problem.source is not None and captures is not None:
            source = captures.source(problem, problem.source)
        if problem.recordable:
            source, captures = Source.of_one_solve(problem), Captures()
        every = min(self.check_every, max(most - 1, 1))  # the evaluation before them counts as a step
        loop = _Replayed(self, every, source, captures)
        try:
            yield loop
        finally:
            loop.close()

    def run(self, problem: Problem, solver: Solver, measure: Measure, start: Stretch, room: int, hold: Hold) -> Stretch:
        return advance(problem, solver, measure, start, min(self.check_every, room), hold, robust=True)


class _Replayed(Loop):
    """A solve whose stretches come from a tape, as long as there is one."""

    pipelined: ClassVar[bool] = True

    def __init__(self, loop: Captured, every: int, source: Source | None, captures: Captures | None) -> None:
        self.check_every, self.loop, self.source, self.captures = every, loop, source, captures
        self.tape: Tape | None = None
        self._taken, self._transfer = 0, Transfer()

    def begin(
        self, problem: Problem, solver: Solver, measure: Measure, z: Tensor, pair: tuple[Tensor, Tensor] | None
    ) -> Stretch:
        source, captures = self.source, self.captures
        self.close()
        self._taken = 0
        if source is None or captures is None or pair is not None or problem.recordable:
            return begin(problem, solver, measure, z, pair, robust=True)
        like, handled = _like(z, *source.tensors), sys.exc_info()[1]
        try:
            self.tape = captures.borrow(
                source.name,
                (source.signature, like, problem.autocast, solver, measure, self.check_every),
                lambda: Tape(source.build(), source.tensors, z, solver, measure, self.check_every),
                self,
            )
            if self.tape is not None:
                return self.tape.begin(z, source.tensors)
            refusal = None
        except Exception as error:
            refusal = without_frames(error, handled)
            self.close()
        start = begin(problem, solver, measure, z, pair, robust=True)  # raises f's own errors
        if refusal is not None:
            captures.refuse(source.name, refusal)
        return start

    def run(self, problem: Problem, solver: Solver, measure: Measure, start: Stretch, room: int, hold: Hold) -> Stretch:
        if problem.recordable and self._taken == AFTER and not hold.redirects:
            self.tape = Tape(lambda: problem, (), start.points[-1], solver, measure, self.check_every)
            start = self.tape.adopt(problem, start)
        self._taken += 1
        last = None if self.tape is None else self.tape.last
        follows = last is not None and start.residual is last.residual and start.memory is last.memory
        if self.tape is None or not follows or solver != self.tape.solver:
            if self.tape is not None:
                self.tape.leave()
            return self.loop.run(problem, solver, measure, start, room, hold)
        tape, span = self.tape, self._whole(room)
        return self._from_tape(
            lambda: tape.run(hold, span).first(room),
            lambda: self.loop.run(problem, solver, measure, start, room, hold),
        )

    def evaluate(self, problem: Problem, measure: Measure, z: Tensor, last: Stretch) -> Stretch:
        tape, otherwise = self.tape, super().evaluate
        if tape is None or not tape.evaluates:
            return otherwise(problem, measure, z, last)
        return self._from_tape(lambda: tape.evaluate(z, last), lambda: otherwise(problem, measure, z, last))

    def _from_tape(self, call: Callable[[], Stretch], otherwise: Callable[[], Stretch]) -> Stretch:
        """The result of `call`, which uses the tape, or of `otherwise` if the tape cannot make a recording."""
        assert self.tape is not None
        assert self.captures is not None
        assert self.source is not None
        handled = sys.exc_info()[1]
        try:
            return call()
        except RecordingError as error:
            refusal = without_frames(error, handled)
        self.captures.refuse(self.source.name, refusal)
        self.tape.leave()
        return otherwise()

    def span(self, missing: float, room: int) -> int:
        every, span, whole = self.check_every, self.check_every, self._whole(room)
        most = 0 if self.tape is None else min(LONGEST * every, MOST // max(self.tape.z.numel(), 1))
        if whole <= most and missing > room - every:
            return whole
        while 2 * span <= most and missing > 2 * span - every:
            span *= 2
        return span

    def _whole(self, steps: int) -> int:
        """The number of steps of the stretches that contain these."""
        return -(-steps // self.check_every) * self.check_every

    def ahead(self, hold: Hold, span: int) -> Stretch | None:
        return self.tape.run(hold, span) if self.tape is not None and self.tape.knows(hold, span) else None

    @property
    def expected(self) -> int:
        return 0 if self.tape is None else self.tape.steps

    @property
    def steady(self) -> bool:
        return self.tape is None or self.tape.steady

    def took(self, steps: int, steady: bool) -> None:
        if self.tape is not None:
            self.tape.steps, self.tape.steady = steps, steady

    def transfer(self) -> Transfer:
        return self._transfer if self.tape is None else self.tape.transfer

    def kept(self, point: Tensor) -> Tensor:
        return point if self.tape is None else point.clone()

    def close(self) -> None:
        if self.captures is not None and self.tape is not None:
            self.captures.give_back(self.tape)
        self.tape = None


def _like(*tensors: Tensor) -> Hashable:
    return tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
