"""The recorded solves that a layer keeps."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..caller import level_of_caller
from ..problem import Problem
from .recording import RecordingError
from .tape import Tape

LIMIT = 8
"""Tapes that a layer keeps for forward and backward solves together: one for each shape, dtype and mode."""
IN_A_ROW = 3 * LIMIT
"""Number of solves in a row without a replay, of which the user is told."""
_NEW: Any = object()
_MEMORY = ". A recording has memory of its own, about that of the steps it contains: leave some free"
_ADVICE = (
    ". Inside f, nothing may wait for the host (.item(), .cpu(), a branch on a value), create tensors on the host, or "
    "draw from a CPU generator"
)


class Source(NamedTuple):
    """A problem as a function of tensors, so that its steps can be recorded and replayed with other tensors."""

    name: str
    """The name of the problem, for messages."""
    signature: Hashable
    """Everything else on which the steps depend; if it differs, they are recorded again."""
    tensors: tuple[Tensor, ...]
    """The tensors that may differ from solve to solve."""
    build: Callable[[], Callable[..., Problem]]
    """`build()(*tensors)` is the problem with these tensors in place of the original ones, none of which it keeps."""

    @classmethod
    def of_one_solve(cls, problem: Problem) -> Source:
        """That of a function, in which nothing changes during a solve."""
        return cls(problem.name, (), (), lambda: lambda: problem)


class Captures:
    """The tapes of a layer, without which its copies and pickles start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tapes: dict[tuple[str, Hashable], Tape | None] = {}  # None: met once
        self._refused: set[str] = set()  # names of problems and of sources
        self._told = self._given_up = False
        self._new: Counter[str] = Counter()  # solves in a row that met no recording
        self._told_of_new = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Captures)  # layers are equal whatever has been recorded of them

    def __hash__(self) -> int:
        return hash(Captures)

    def __deepcopy__(self, memo: Any) -> Captures:
        return Captures()

    def __reduce__(self) -> tuple[type[Captures], tuple[()]]:
        return Captures, ()

    def __len__(self) -> int:
        return sum(tape is not None for tape in self._tapes.values())

    def source(self, problem: Problem, make: Callable[[Problem], Source | None]) -> Source | None:
        """The source of the problem, which is to be captured; None, with a warning, where it has none."""
        if self._given_up or problem.name in self._refused:
            return None
        try:
            source = make(problem)
        except RecordingError as error:  # it may have one with the next inputs
            self._warn(problem.name, error)
            return None
        except Exception as error:  # of a container that holds itself, or of a user's object
            why = f"what it depends on cannot be told ({type(error).__name__}: {error})"
            self.refuse(problem.name, RecordingError(why))
            return None
        return None if source is None or source.name in self._refused else source

    def borrow(self, name: str, kind: Hashable, make: Callable[[], Tape], user: object) -> Tape | None:
        """The tape; None in the first solve, which warms up and may not recur, and while the tape is in use.

        Args:
            name: the name of the problem.
            kind: everything that identifies the tape among those of this name.
            make: makes a new one.
            user: the loop that is going to use it.
        """
        key = name, kind
        with self._lock:  # the key is long: each look at the dict hashes it anew
            tape = self._tapes.pop(key, _NEW)
            self._new[name] = self._new[name] + 1 if tape is _NEW or tape is None else 0
            if tape is None:
                tape = make()
            while len(self._tapes) >= LIMIT:
                del self._tapes[next(iter(self._tapes))]
            self._tapes[key] = None if tape is _NEW else tape  # most recent last
            if self._new[name] == IN_A_ROW and not self._told_of_new:
                self._told_of_new = True
                warnings.warn(
                    f"loop=Captured(): none of the last {IN_A_ROW} solves of {name} replayed a recording: each was of "
                    f"a kind that is not among the last {LIMIT}, forward and backward, or the second of its kind, "
                    "which records. Either inputs have many shapes: pad them to few. Or tolerances or settings of the "
                    "solver change: keep them for a while. Or something that f may read is new each time: pass it as a "
                    "tensor, since other inputs tell kinds apart or, if it is an attribute that f itself sets for "
                    "others, begin its name with an underscore. (The old weight_norm and spectral_norm and "
                    "torch.nn.utils.prune set a new weight each time, torch.nn.utils.parametrizations do not.)",
                    RuntimeWarning,
                    stacklevel=level_of_caller(),
                )
            if tape is _NEW or tape.lent:
                return None
            tape.user = weakref.ref(user)
            return tape

    def give_back(self, tape: Tape) -> None:
        """The end of the use of a borrowed tape."""
        with self._lock:
            tape.end()

    def give_up(self) -> None:
        """Drop all tapes, and make no others."""
        with self._lock:
            self._given_up = True
            self._tapes.clear()

    def refuse(self, name: str, error: Exception) -> None:
        """Stop capturing solves of this name, and drop their tapes."""
        with self._lock:
            self._refused.add(name)
            for key in [key for key in self._tapes if key[0] == name]:
                del self._tapes[key]
        self._warn(name, error)

    def _warn(self, name: str, error: Exception) -> None:
        """Give the reason, once for all solves of the layer."""
        with self._lock:
            told, self._told = self._told, True
        if told:
            return
        cause = error.__cause__ if isinstance(error, RecordingError) else error
        why, advice = (f": {error}", "") if cause is None else (f" ({type(cause).__name__}: {cause})", _ADVICE)
        if isinstance(cause, torch.OutOfMemoryError):
            advice = _MEMORY
        warnings.warn(
            f"loop=Captured(): {name} cannot be captured{why}. Its steps run one by one, as with Eager{advice}",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )
