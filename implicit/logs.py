"""See what the implicit layers of a model did: `record()`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

from torch import nn

from solvers import Solution
from solvers.pages import table


class ConvergenceWarning(UserWarning):
    """Some rows of a forward or backward solve did not converge: once per cell, and again if ten times worse
    or, the first times, under other settings."""


class Record(NamedTuple):
    """One solve: the layer's name and its `Solution` (without the value, unless `record(values=True)`)."""

    name: str
    solution: Solution

    def to_dict(self) -> dict[str, Any]:
        """What happened to each row, with the layer's name."""
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
        """One line per solve, in plain numbers and words: `pandas.DataFrame(log.to_dict())`."""
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
    """Record every solve of this thread in the block, including the backward solves of its forward passes.

    Outside a block nothing is recorded, at no cost. The log is captured in the forward pass, so a backward pass that
    runs in another thread, or after the block, goes to the log of its forward pass. Blocks may be nested: each log gets
    every solve within its block.

        with implicit.record(model) as log:
            model(x).square().mean().backward()
        log.forward[0].solution.trace

    Args:
        model: names the layers by their place in it (`blocks.0.equilibrium`); without it, layers are named by their
            cell's class. Nested blocks each use their own model.
        values: keep the solutions' values too, which costs memory.
    """
    log = Log(values=values, names={} if model is None else module_names(model))
    token = _logs.set((*_logs.get(), log))
    try:
        yield log
    finally:
        _logs.reset(token)


def module_names(model: nn.Module) -> dict[int, str]:
    """The names of a model's modules by their `id`; the model itself has none."""
    return {id(module): name for name, module in model.named_modules() if name}


@contextmanager
def unrecorded() -> Iterator[None]:
    """Keep the solves in the block out of all logs open outside it."""
    token = _logs.set(())
    try:
        yield
    finally:
        _logs.reset(token)


def current_logs() -> tuple[Log, ...]:
    return _logs.get()


class LayerName(str):
    """A layer's name in warnings; each log names it by its place in the model given to that log."""

    layer: int
    """The `id` of the module."""
    otherwise: str
    """The layer's name if it has no place in a model."""

    def within(self, log: Log) -> str:
        """The layer's name in this log."""
        return log.names.get(self.layer, self.otherwise)


def layer_name(layer: nn.Module, otherwise: str) -> LayerName:
    """The layer's name; in warnings, its place in the model of the innermost log whose model contains it."""
    place = next((log.names[id(layer)] for log in reversed(_logs.get()) if id(layer) in log.names), otherwise)
    name = LayerName(place)
    name.layer, name.otherwise = id(layer), otherwise
    return name
