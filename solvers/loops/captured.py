"""Stretches that are recorded once, as CUDA graphs, and replayed in later solves of the same shapes."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..checks import check_positive_integer
from ..norms import Measure
from ..problem import Problem
from ..rules.rule import Solver
from .eager import Hold, Loop, Stretch, advance, begin
from .tape import Tape

LIMIT = 8
"""Tapes that a layer keeps for solves forward, and as many backward: one for each shape, dtype and mode."""


class Source(NamedTuple):
    """A problem as a function of tensors, so that its steps can be recorded, and replayed with others."""

    name: str
    """Of what is solved, for messages."""
    signature: Hashable
    """Whatever else the steps depend on: where it differs, they are recorded anew."""
    tensors: tuple[Tensor, ...]
    """Those that may differ from solve to solve."""
    build: Callable[..., Problem]
    """`build(*tensors)` is the problem with these in their places."""


class Captures:
    """The tapes of a layer. They are no part of its copies and pickles, and start empty there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tapes: dict[Hashable, Tape | None] = {}
        self._borrowed: set[Hashable] = set()
        self._refused: set[str] = set()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Captures)  # layers are alike whatever has been recorded of them

    def __hash__(self) -> int:
        return hash(Captures)

    def __deepcopy__(self, memo: Any) -> Captures:
        return Captures()

    def __reduce__(self) -> tuple[type[Captures], tuple[()]]:
        return Captures, ()

    def __len__(self) -> int:
        return sum(tape is not None for tape in self._tapes.values())

    def borrow(self, key: Hashable, make: Callable[[], Tape]) -> Tape | None:
        """The tape; None in the first solve, which shows what is worth it and warms up, and while it is in use."""
        with self._lock:
            if key in self._borrowed:
                return None
            seen, tape = key in self._tapes, self._tapes.pop(key, None)
            if seen and tape is None:
                tape = make()
            while len(self._tapes) >= LIMIT:
                del self._tapes[next(iter(self._tapes))]
            self._tapes[key] = tape  # the latest last
            if tape is not None:
                self._borrowed.add(key)
            return tape

    def give_back(self, key: Hashable) -> None:
        with self._lock:
            self._borrowed.discard(key)

    def refuse(self, name: str, error: Exception) -> None:
        """Say once that it cannot be captured."""
        told, self._refused = self._refused, self._refused | {name}
        if not told:
            warnings.warn(
                f"loop=Captured(): {name} cannot be captured ({type(error).__name__}: {error}). Its steps are run one "
                "after the other, as by Eager. Inside f nothing may wait for the host (.item(), .cpu(), a branch on a "
                "value), make tensors on the host, or draw from a generator of the CPU",
                RuntimeWarning,
                stacklevel=2,
            )

    def refuses(self, name: str) -> bool:
        return name in self._refused


@dataclass(frozen=True)
class Captured(Loop):
    """CUDA graphs of stretches of `check_every` steps, f included, recorded once and replayed.

    For f whose operations take less time on a GPU than calling them does. A layer keeps its graphs, forward and
    backward, by the shapes and dtypes of its inputs, the modes, and its parameters' places in memory; the first solve
    of a kind is run as by `Eager`, the next ones warm up and record. In-place updates, as of optimisers,
    `load_state_dict` and changed inputs are seen; a parameter that is moved or replaced is recorded anew. Statuses,
    steps and values are those of `Eager(check_every)`. Needs fixed shapes, so compact=False, and a solver with a fixed
    cost a step.

    On a processor the same buffers are used, and the steps are called instead of replayed: nothing is gained. A
    function that is no module may read tensors that nobody knows: it is run as by `Eager`. So is a cell that solves a
    problem of its own, whose steps are recorded instead.
    """

    check_every: int = 8
    """Steps between two looks at the residuals. The last stretch runs past the last step, by fewer than so many
    evaluations, and what it finds there is cut off; where the residuals fell faster than before, another one has been
    begun in vain."""

    fixed_shapes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive_integer(self, "check_every")

    @contextmanager
    def open(self, problem: Problem) -> Iterator[Loop]:
        source, captures = problem.source(problem) if problem.source is not None else None, problem.captures
        if source is not None and captures is not None and captures.refuses(source.name):
            source = None
        loop = _Replayed(self, source, captures)
        try:
            yield loop
        finally:
            loop.close()

    def run(self, problem: Problem, solver: Solver, measure: Measure, start: Stretch, room: int, hold: Hold) -> Stretch:
        return advance(problem, solver, measure, start, min(self.check_every, room), hold)


class _Replayed(Loop):
    """A solve whose stretches come from a tape, as long as there is one."""

    def __init__(self, loop: Captured, source: Source | None, captures: Captures | None) -> None:
        self.check_every, self.loop, self.source, self.captures = loop.check_every, loop, source, captures
        self.tape: Tape | None = None
        self.key: Hashable = None

    def begin(
        self, problem: Problem, solver: Solver, measure: Measure, z: Tensor, pair: tuple[Tensor, Tensor] | None
    ) -> Stretch:
        source, captures = self.source, self.captures
        self.close()
        if source is None or captures is None or pair is not None:
            return begin(problem, solver, measure, z, pair)
        self.key = (
            source.signature,
            _like(z, *source.tensors),
            problem.autocast,
            solver,
            measure,
            self.check_every,
        )
        self.tape = captures.borrow(
            self.key, lambda: Tape(source.build, source.tensors, z, solver, measure, self.check_every)
        )
        if self.tape is None:
            return begin(problem, solver, measure, z, pair)
        try:
            return self.tape.begin(z, source.tensors)
        except Exception as error:
            if not self.tape.recording:
                raise
            captures.refuse(source.name, error)
            self.close()
            return begin(problem, solver, measure, z, pair)

    def run(self, problem: Problem, solver: Solver, measure: Measure, start: Stretch, room: int, hold: Hold) -> Stretch:
        # one last evaluation needs no stretch
        if (
            self.tape is None
            or start is not self.tape.last
            or solver != self.tape.solver
            or room == 1 < self.check_every
        ):
            return self.loop.run(problem, solver, measure, start, room, hold)
        try:
            return self.tape.run(hold).first(room)
        except Exception as error:
            if not self.tape.recording or self.captures is None or self.source is None:
                raise
            self.captures.refuse(self.source.name, error)  # nothing was run: the buffers are as they were
            self.tape.recording = False
            return self.loop.run(problem, solver, measure, start, room, hold)

    def evaluate(self, problem: Problem, measure: Measure, z: Tensor, last: Stretch) -> Stretch:
        if self.tape is None or not self.tape.evaluates:
            return super().evaluate(problem, measure, z, last)
        return self.tape.evaluate(z, last)

    @property
    def goes_ahead(self) -> bool:
        return self.tape is not None and self.tape.steady

    def ahead(self, hold: Hold) -> Stretch:
        assert self.tape is not None
        return self.tape.run(hold)

    def kept(self, point: Tensor) -> Tensor:
        return point if self.tape is None else point.clone()

    def close(self) -> None:
        if self.captures is not None and self.tape is not None:
            self.captures.give_back(self.key)
        self.tape = None


def _like(*tensors: Tensor) -> Hashable:
    return tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
