"""See what the implicit layers of a model did: `record()`, and the warning of a solve that did not converge."""

from __future__ import annotations

import math
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

import solvers
from solvers import Solution
from solvers.pages import table


class ConvergenceWarning(UserWarning):
    """Some rows of a forward or backward solve did not converge; Python's warning filters decide how often it shows."""


class Record(NamedTuple):
    """One solve: the layer's name and its `Solution` (without the value, unless `record(values=True)`)."""

    name: str
    solution: Solution

    def to_dict(self) -> dict[str, Any]:
        """What became of each row, with the layer's name."""
        return {"layer": self.name, **self.solution.to_dict()}

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.name)}</p>{self.solution._repr_html_()}"


@dataclass(frozen=True, repr=False)
class Log:
    """The solves of a `record()` block, in order of solving."""

    forward: list[Record] = field(default_factory=list)
    backward: list[Record] = field(default_factory=list)
    values: bool = False
    names: dict[int, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, list[Any]]:
        """A line a solve, in plain numbers and words: `pandas.DataFrame(log.to_dict())`."""
        entries = [(way, *entry) for way in ("forward", "backward") for entry in getattr(self, way)]
        solutions = [solution for _, _, solution in entries]
        return {
            "layer": [name for _, name, _ in entries],
            "direction": [way for way, _, _ in entries],
            "rows": [len(solution.status) for solution in solutions],
            "converged": [int(solution.converged.sum()) for solution in solutions],
            "steps": [solution.steps.max().item() if len(solution.steps) else 0 for solution in solutions],
            "evaluations": [int(solution.evaluations.sum()) for solution in solutions],
            "residual": [solution.residual.max().item() if len(solution.steps) else 0.0 for solution in solutions],
        }

    def __repr__(self) -> str:
        numbers = self.to_dict()
        return (
            f"Log({len(self.forward)} forward and {len(self.backward)} backward solves: "
            f"{sum(numbers['converged'])} of {sum(numbers['rows'])} rows converged)"
        )

    def _repr_html_(self) -> str:
        solutions = [entry.solution for entry in (*self.forward, *self.backward)]
        curves = [solution.curve() for solution in solutions]
        headings = ["layer", "direction", "rows", "converged", "most steps", "evaluations", "largest relative residual"]
        lines = [[*map(str, line[:-1]), f"{line[-1]:.1e}"] for line in zip(*self.to_dict().values(), strict=True)]
        return table(headings, lines, curves)


_logs: ContextVar[tuple[Log, ...]] = ContextVar("implicit_logs", default=())


@contextmanager
def record(model: nn.Module | None = None, *, values: bool = False) -> Iterator[Log]:
    """Record every solve that this thread does in the block, the backward solves of its forward passes included.

    Outside such a block nothing is recorded and nothing is paid. The log is captured at forward time, so a backward
    pass that runs in another thread, or after the block, lands in the log of its forward. Blocks may be nested: each
    log gets every solve within its block.

        with implicit.record(model) as log:
            model(x).square().mean().backward()
        log.forward[0].solution.trace

    Args:
        model: names the layers by their place in it (`blocks.0.equilibrium`); without it, by their cell's class. Each
            of nested blocks names them by its own.
        values: keep the solutions' values too, and with them their memory.
    """
    log = Log(values=values, names={} if model is None else module_names(model))
    token = _logs.set((*_logs.get(), log))
    try:
        yield log
    finally:
        _logs.reset(token)


def module_names(model: nn.Module) -> dict[int, str]:
    """What the modules of a model are called, by their identity; the model itself has no name."""
    return {id(module): name for name, module in model.named_modules() if name}


@contextmanager
def unrecorded() -> Iterator[None]:
    """Solves in the block enter no log of the outside."""
    token = _logs.set(())
    try:
        yield
    finally:
        _logs.reset(token)


def current_logs() -> tuple[Log, ...]:
    return _logs.get()


class LayerName(str):
    """What to call a layer in a warning; each log calls it by its place in the model that it was told."""

    layer: int
    """The module's identity."""
    otherwise: str
    """Its name where it has no place in a model."""

    def within(self, log: Log) -> str:
        """Its name in this log, whoever else listens."""
        return log.names.get(self.layer, self.otherwise)


def layer_name(layer: nn.Module, otherwise: str) -> LayerName:
    """The layer's name: in warnings its place, in the innermost log that was told its model."""
    place = next((log.names[id(layer)] for log in reversed(_logs.get()) if id(layer) in log.names), otherwise)
    name = LayerName(place)
    name.layer, name.otherwise = id(layer), otherwise
    return name


class Reports(NamedTuple):
    """Where the solves of one call of a layer, or of `fixed_point`, are told."""

    logs: tuple[Log, ...]
    """Those that were open at its forward."""
    name: str
    """`layer_name` of a layer, or the function's."""
    owner: Any
    """The layer, or the function."""
    settings: str = ""
    """Where to find the settings that a warning names, if they are not the layer's or its gradient's."""

    def enter(
        self,
        direction: Literal["forward", "backward"],
        converged: bool,
        found: Callable[[], Solution],
        radius: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Enter a solve in the logs, and warn if rows did not converge, unless that has been said before.

        Args:
            direction: which of the two.
            converged: whether all rows did.
            found: makes the solution, which costs transfers to the device.
            radius: measures the spectral radius of the Jacobian, where that is cheap.
        """
        if converged and not self.logs:
            return
        solution = found()
        for log in self.logs:
            kept = solution if log.values else replace(solution, value=())
            called = self.name.within(log) if isinstance(self.name, LayerName) else self.name
            (log.forward if direction == "forward" else log.backward).append(Record(called, kept))
        if converged or _ignored() or not _is_news(self.owner, direction, solution):
            return
        text = f"{self.name}, {direction} solve: {solution.summary()}"
        if self.settings or direction == "backward":
            text += "\n" + (self.settings or _BACKWARD)
        measured = radius()
        if measured is not None:
            text += f"\nThe spectral radius of the Jacobian there is about {measured:.2g}"
            text += ": plain iteration runs away, scale the weights down" if measured > 1 else ""
        text += (
            "\nimplicit.diagnostics.diagnose looks for the cause. Said again once it is ten times worse; "
            "implicit.record() has every solve"
        )
        warnings.warn(text, ConvergenceWarning, stacklevel=level_of_caller())


_BACKWARD = (
    "For this solve these are settings of gradient=ImplicitGradient(solver=…, rtol=…, max_steps=…), whose "
    "unconverged=… says what becomes of such rows"
)
_worst: weakref.WeakKeyDictionary[Any, dict[str, float]] = weakref.WeakKeyDictionary()
"""Of each layer, or of a function's code, the largest residual that a warning has told, in each direction."""
WORSE = 10.0
"""Factor by which a residual must exceed that to be told again."""


def _ignored() -> bool:
    """Whether the caller wants no such warning: what he does not see has not been told."""
    for action, message, category, module, _ in warnings.filters:
        if issubclass(ConvergenceWarning, category) and message is None and module is None:
            return action == "ignore"
    return False


def _is_news(owner: Any, direction: str, solution: Solution) -> bool:
    known = _worst.setdefault(_lasting(owner), {})
    residuals = solution.residual[~solution.converged]
    residual = math.inf if bool(residuals.isnan().any()) else float(residuals.max())
    if direction in known and not residual >= WORSE * known[direction]:
        return False
    if known.get(direction) == math.inf:
        return False
    known[direction] = residual
    return True


def _lasting(owner: Any) -> Any:
    """What is the same each time the code that defines a function runs: a module that it holds, else that code."""
    if isinstance(owner, partial):
        held = owner.args
    else:
        held = (
            getattr(owner, "__self__", None),
            *(cell.cell_contents for cell in getattr(owner, "__closure__", None) or ()),
        )
    for value in held:
        if isinstance(value, nn.Module):
            return value
    return _lasting(owner.func) if isinstance(owner, partial) else getattr(owner, "__code__", owner)


def level_of_caller() -> int:
    """How far up the stack the code lies that is neither ours nor PyTorch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INTERNAL):
        level, frame = level + 1, frame.f_back
    return level


_INTERNAL = tuple(os.path.dirname(package) for package in (__file__, solvers.__file__, torch.__file__))
