"""What is to be solved: `f` with its arguments, as a map of flat matrices, and the checks of what a caller passes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .autocast import autocast_dtype
from .solver import Solver, check_positive_integer
from .state import Layout, State


@dataclass(frozen=True)
class Settings:
    """How to solve: the keyword arguments of `solve`, checked."""

    solver: Solver
    rtol: float
    atol: float
    max_steps: int
    compact: bool = False
    check_every: int = 1
    compile: bool = False

    title: ClassVar[str] = "solve"

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise TypeError(
                f"solver={self.solver!r} is not a Solver: pass an object such as Anderson() or Picard(damping=0.5)"
            )
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < math.inf:
                raise ValueError(f"{name}={value!r} must be a finite number of at least 0")
        check_positive_integer(self, "max_steps")
        check_positive_integer(self, "check_every")
        for name in ("compact", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"solve: {name}={getattr(self, name)!r} must be True or False")
        if self.compile and self.compact:
            raise ValueError("compile=True needs fixed shapes, compact=True drops rows: pass compact=False with it")
        if self.compile and type(self.solver).bind is not Solver.bind:
            raise ValueError(
                f"compile=True needs a solver with a fixed cost a step, {type(self.solver).__name__} is none: use "
                "Picard, Anderson or Broyden"
            )


class DroppedRowsError(ValueError):
    """f failed in a batch from which rows had been dropped."""


class Problem:
    """`f` as a map of (rows, dim) matrices, with the checks of what it returns."""

    def __init__(self, f: Callable[..., State], args: tuple[Any, ...], layout: Layout) -> None:
        self.f, self.args, self.layout, self.dropped = f, args, layout, False
        self.autocast = autocast_dtype(layout.device)
        """As the caller has it: the loop turns autocast off, for the solver's own products."""
        self.rounding = max(torch.finfo(dtype).eps for dtype in (layout.dtype, self.autocast) if dtype is not None)
        """Relative, of what f returns."""
        self.spent: NDArray[np.int64] | None = None
        """(rows,) evaluations that a solver made within its last step."""

    def __call__(self, flat: Tensor) -> Tensor:
        try:
            if self.autocast is None:
                return self._evaluate(flat)
            with torch.autocast(self.layout.device.type, dtype=self.autocast):
                return self._evaluate(flat)
        except (RuntimeError, ValueError, IndexError) as error:
            if not self.dropped or isinstance(error, torch.OutOfMemoryError):
                raise
            raise DroppedRowsError(
                f"f failed once rows that had stopped were dropped ({error}). If a tensor in its closure has the "
                "batch's full size, pass it through args; otherwise pass compact=False"
            ) from error

    def _evaluate(self, flat: Tensor) -> Tensor:
        layout = self.layout
        return layout.flatten(layout.check(self.f(layout.unflatten(flat), *self.args), flat.shape[0]))

    def take(self, rows: Tensor) -> Problem:
        """The problem of the rows at these positions."""
        taken = copy.copy(self)
        taken.args, taken.dropped, taken.spent = select(self.args, rows), True, None
        return taken


def prepare(f: Any, z0: State, args: Any, compact: bool) -> Problem:
    """Check what is to be solved, and flatten it."""
    if not callable(f):
        raise TypeError(f"f is a {type(f).__name__}: pass a callable f(z, *args)")
    if not isinstance(args, tuple):
        raise TypeError(f"args is a {type(args).__name__}: pass a tuple, args=(x,)")
    layout = Layout(z0)
    if layout.device.type == "meta":
        raise ValueError("z0 is on the meta device: there are no residuals to look at; pass tensors with values")
    if compact:
        _check_rows(args, layout.batch, "args")
    return Problem(f, args, layout)


def mapped(values: Any, change: Callable[[Any], Any]) -> Any:
    """Nested (named) tuples with every other value changed."""
    if isinstance(values, tuple):
        parts = [mapped(part, change) for part in values]
        kind: Any = type(values)
        return kind._make(parts) if hasattr(kind, "_make") else tuple(parts)
    return change(values)


def select(values: Any, rows: Tensor) -> Any:
    """The rows of every tensor in nested (named) tuples; other values as they are."""
    return mapped(values, lambda value: value.index_select(0, rows) if isinstance(value, Tensor) else value)


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
