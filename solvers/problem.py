"""What is to be solved: `f` with its arguments, as a map of flat matrices, and the checks of what a caller passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .solver import Solver
from .state import Layout, State


class Problem:
    """`f` as a map of (rows, dim) matrices, with the checks of what it returns."""

    def __init__(
        self, f: Callable[..., State], args: tuple[Any, ...], layout: Layout, *, dropped: bool = False
    ) -> None:
        self.f, self.args, self.layout, self.dropped = f, args, layout, dropped

    def __call__(self, flat: Tensor) -> Tensor:
        layout = self.layout
        try:
            output = self.f(layout.unflatten(flat), *self.args)
            return layout.flatten(layout.check(output, flat.shape[0]))
        except (RuntimeError, ValueError, IndexError) as error:
            if not self.dropped or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"f failed once rows that had stopped were dropped ({error}). If a tensor in its closure has the "
                "batch's full size, pass it through args; otherwise pass compact=False"
            ) from error

    def take(self, rows: Tensor) -> Problem:
        """The problem of the rows at these positions."""
        return Problem(self.f, select(self.args, rows), self.layout, dropped=True)


def prepare(f: Any, z0: State, args: Any, compact: bool) -> Problem:
    """Check what is to be solved, and flatten it."""
    if not callable(f):
        raise TypeError(f"f is a {type(f).__name__}: pass a callable f(z, *args)")
    if not isinstance(args, tuple):
        raise TypeError(f"args is a {type(args).__name__}: pass a tuple, args=(x,)")
    layout = Layout(z0)
    if compact:
        _check_rows(args, layout.batch, "args")
    return Problem(f, args, layout)


def check_settings(solver: Any, rtol: Any, atol: Any, max_steps: Any) -> None:
    """Raise on settings that no solve can have."""
    if not isinstance(solver, Solver):
        raise TypeError(f"solver={solver!r} is not a Solver: pass an object such as Anderson() or Picard(damping=0.5)")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < math.inf:
            raise ValueError(f"{name}={value!r} must be a finite number of at least 0")
    if not isinstance(max_steps, int) or isinstance(max_steps, bool) or max_steps < 1:
        raise ValueError(f"max_steps={max_steps!r} must be an integer of at least 1")


def select(values: Any, rows: Tensor) -> Any:
    """The rows of every tensor in nested (named) tuples; other values as they are."""
    if isinstance(values, Tensor):
        return values.index_select(0, rows)
    if isinstance(values, tuple):
        parts = [select(part, rows) for part in values]
        kind: Any = type(values)
        return kind._make(parts) if hasattr(kind, "_make") else tuple(parts)
    return values


def _check_rows(values: tuple[Any, ...], batch: int, name: str) -> None:
    for position, value in enumerate(values):
        here = f"{name}[{position}]"
        if isinstance(value, tuple):
            _check_rows(value, batch, here)
        elif isinstance(value, Tensor) and (value.ndim == 0 or value.shape[0] != batch):
            raise ValueError(
                f"{here} has shape {tuple(value.shape)}, z0 a batch of {batch}: compact=True drops rows of every "
                "tensor in args; put shared tensors into the closure or the module, or pass compact=False"
            )
