"""See what the implicit layers of a model did: `record()`, and the warning of a solve that did not converge."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import nn

from solvers import Solution


class ConvergenceWarning(UserWarning):
    """Some rows of a forward or backward solve did not converge; Python's warning filters decide how often it shows."""


class Record(NamedTuple):
    """One solve: the layer's name and its `Solution` (without the value, unless `record(values=True)`)."""

    name: str
    solution: Solution


@dataclass(frozen=True)
class Log:
    """The solves of a `record()` block, in order of solving."""

    forward: list[Record] = field(default_factory=list)
    backward: list[Record] = field(default_factory=list)
    values: bool = False
    names: dict[int, str] = field(default_factory=dict)


_log: ContextVar[Log | None] = ContextVar("implicit_log", default=None)


@contextmanager
def record(model: nn.Module | None = None, *, values: bool = False) -> Iterator[Log]:
    """Record every solve of the block, the backward solves of its forward passes included.

    Outside such a block nothing is recorded and nothing is paid. The log is captured at forward time, so a backward
    pass that runs in another thread, or after the block, lands in the log of its forward.

        with implicit.record(model) as log:
            model(x).square().mean().backward()
        log.forward[0].solution.trace

    Args:
        model: names the layers by their place in it (`blocks.0.equilibrium`); without it, by their cell's class.
        values: keep the solutions' values too, and with them their memory.
    """
    names = {} if model is None else {id(module): name for name, module in model.named_modules() if name}
    log = Log(values=values, names=names)
    token = _log.set(log)
    try:
        yield log
    finally:
        _log.reset(token)


def current_log() -> Log | None:
    return _log.get()


def report(log: Log | None, name: str, direction: str, solution: Solution) -> None:
    """Enter a solve in the log that was open at its forward, and warn if rows did not converge."""
    if log is not None:
        kept = solution if log.values else replace(solution, value=())
        (log.forward if direction == "forward" else log.backward).append(Record(name, kept))
    if not bool(solution.converged.all()):
        warnings.warn(f"{name}, {direction} solve: {solution.summary()}", ConvergenceWarning, stacklevel=2)
