"""The problem to solve: `f` with its arguments as a map of flat matrices, checked at each call."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses import FakeTensor

from .norms import Measure
from .precision import TF32, rounding_unit
from .state import Layout, State, autocast_dtype, tree_leaves, tree_map

if TYPE_CHECKING:
    from .loops.captures import Captures, Source

IN_PLACE = (
    "f writes into its argument, or into what it returned before: return a fresh tensor (no in-place operations on z; "
    "clone a static output)"
)

Advice = Callable[[], str] | None
"""Makes the text to append to an error about the start, or raised by the first evaluation."""


@dataclass(frozen=True)
class Shared:
    """An argument that all rows share, even if its dim 0 is as long as the batch: `args=(x, Shared(mask))`.

    `f` receives the value itself. Needed only where rows are dropped (`compact=True`).
    """

    value: Any


class DroppedRowsError(ValueError):
    """f failed in a batch from which rows had been dropped."""


class Problem:
    """`z = f(z, *args)` on (rows, dim) matrices."""

    relative_to_start: ClassVar[bool] = False
    """Whether residuals are compared with the first one rather than with the image."""
    subtracts: ClassVar[bool] = True
    """Whether the residual is the image less z, and has the rounding of both."""

    def __init__(self, f: Callable[..., State], args: tuple[Any, ...], layout: Layout) -> None:
        self.f, self.layout, self.dropped = f, layout, False
        self.name: str = getattr(f, "__name__", type(f).__name__)
        self.compact = False  # whether rows that have stopped may be dropped
        self.independent = False
        """Whether f has been seen to return the same for some rows alone."""
        self.told = False
        """Whether the user has been warned of a cause for which rows depend on each other or f is random."""
        self.coupled = False
        """Whether rows have been seen to depend on each other."""
        self.source: Callable[[Problem], Source | None] | None = None
        """Returns what `Captured` records of this problem; `captures` keeps the recordings."""
        self.captures: Captures | None = None
        self.recordable = False  # whether `Captured` may record f as it is, for the length of a solve
        self.args = unshared(args)
        self._by_row: list[bool] | None = None  # which leaves of args have the batch in dim 0, once known
        if self.args is not args:
            self._by_row = [
                False if isinstance(leaf, Shared) else _by_row(part, layout.batch)
                for leaf in tree_leaves(args)
                for part in (tree_leaves(leaf.value) if isinstance(leaf, Shared) else [leaf])
            ]
        self.autocast = autocast_dtype(layout.device)
        """The caller's autocast dtype: the loop turns autocast off for the solver's own products."""
        self.rounding = rounding_unit(f, layout, self.autocast)
        """Relative rounding unit of the output of f."""
        self.spent: NDArray[np.int64] | None = None
        """(rows,) evaluations that a solver made within its last step."""
        self.advice: Advice = None

    @property
    def precision(self) -> torch.dtype | str:
        """What f computes in."""
        return "TensorFloat-32" if self.rounding == TF32 else self.autocast or self.layout.dtype

    @property
    def spread(self) -> float:
        """Relative step length of finite differences."""
        return float(self.rounding) ** 0.5

    def __call__(self, flat: Tensor) -> Tensor:
        """`f(z)`."""
        if self.autocast is None:
            return self._evaluate(flat)
        with torch.autocast(self.layout.device.type, dtype=self.autocast):
            return self._evaluate(flat)

    def residual(self, flat: Tensor) -> Tensor:
        """`f(z) − z`."""
        return self(flat) - flat

    def _evaluate(self, flat: Tensor) -> Tensor:
        layout = self.layout
        try:
            output = self.f(layout.unflatten(flat), *self.args)
            image = layout.flatten(layout.check(output, flat.shape[0]))
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            if self.dropped:
                raise DroppedRowsError(str(error)) from error
            if self.advice is not None:
                advise(error, self.advice())
            raise
        self.advice = None
        # a cell may take gradients inside; where we record no graph, its own must not grow from step to step
        return image.detach() if image.requires_grad and not torch.is_grad_enabled() else image

    def evaluate(self, z: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """`f(z)` and `f(z) − z`; raises ValueError if f overwrites its argument or its previous output.

        Iterates are kept by reference, so f must not change them.
        """
        image, residual = self._checked_pair(z, last)
        return image, image - z if residual is None else residual

    def measured(self, z: Tensor, last: Tensor, measure: Measure, robust: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`evaluate`, with the norms of both."""
        image, residual = self._checked_pair(z, last)
        if residual is None:
            return image, *measure.difference(image, z, robust)
        return image, residual, measure(residual, image, robust)

    def first(self, z: Tensor, measure: Measure, robust: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`measured` at the first iterate."""
        copy = z.clone() if z.is_inference() else z
        found = self.measured(z, z, measure, robust)
        if z.is_inference() and not torch.equal(copy.nan_to_num(), z.nan_to_num()):
            raise ValueError(IN_PLACE)
        return found

    def _checked_pair(self, z: Tensor, last: Tensor) -> tuple[Tensor, Tensor | None]:
        if torch.compiler.is_compiling() or z.is_inference() or last.is_inference():  # these carry no version
            return self._pair(z)
        before = z._version, last._version
        pair = self._pair(z)
        if (z._version, last._version) != before:
            raise ValueError(IN_PLACE)
        return pair

    def _pair(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """`f(z)`, and the residual if it is known other than as `f(z) − z`, else None."""
        return self(z), None

    def take(self, rows: Tensor) -> Problem:
        """The problem of the rows at these positions, which are also selected in arguments with the batch in dim 0."""
        taken = copy.copy(self)
        taken.dropped = True
        if taken._by_row is None:  # decided once: a smaller batch may be as long as a shared tensor
            taken._by_row = [_by_row(leaf, self.layout.batch) for leaf in tree_leaves(self.args)]
        chosen = iter(taken._by_row)
        taken.args = tree_map(lambda leaf: leaf.index_select(0, rows) if next(chosen) else leaf, self.args)
        return taken

    def apart(self) -> Problem:
        """The same problem with detached arguments, whose graph each Jacobian product would otherwise traverse."""
        apart = copy.copy(self)
        apart.args = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, self.args)
        return apart

    def widened(self) -> Problem:
        """The same problem in double precision."""
        wide = copy.copy(self)
        wide.layout = self.layout.widened()
        return wide


def unshared(args: Any) -> Any:
    """The arguments as f gets them."""
    if not any(isinstance(leaf, Shared) for leaf in tree_leaves(args)):
        return args
    return tree_map(lambda leaf: leaf.value if isinstance(leaf, Shared) else leaf, args)


def advise(error: Exception, advice: str) -> None:
    """Append this advice to the error's message or, if the error is of another kind, add it as a note."""
    if len(error.args) <= 1 and isinstance(error, _WITH_MESSAGES):
        error.args = ("\n".join((*map(str, error.args), advice)),)
    elif hasattr(error, "add_note"):  # from Python 3.11 on
        error.add_note(advice)


_WITH_MESSAGES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)


def prepare(
    f: Any, z0: State, args: Any, kind: type[Problem] = Problem, *, advice: Advice = None, recordable: bool = False
) -> Problem:
    """Check the arguments of a solve, and make the problem from them, with these attributes."""
    if not callable(f):
        raise TypeError(f"f is a {type(f).__name__}: pass a callable f(z, *args)")
    if not isinstance(args, tuple):
        raise TypeError(f"args is a {type(args).__name__}: pass a tuple, args=(x,)")
    try:
        layout = Layout(z0)
    except (TypeError, ValueError) as error:
        if advice is not None:
            advise(error, advice())
        raise
    _refuse_recording(f, layout, tree_leaves(z0)[0])
    problem = kind(f, args, layout)
    problem.advice, problem.recordable = advice, recordable
    return problem


def _refuse_recording(f: Any, layout: Layout, first: Tensor) -> None:
    """Raise if residuals have no values to read, or if a tracer would replay the steps of one solve for all data."""
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
    fault = None
    if torch.jit._trace.is_tracing():
        fault = "torch.jit.trace would replay the steps of this one solve whatever the data"
    elif torch.compiler.is_exporting():
        fault = "torch.export has no values"
    elif layout.device.type == "meta" or isinstance(first, FakeTensor):
        fault = f"{'tensors on the meta device' if layout.device.type == 'meta' else 'fake tensors'} have no values"
    elif proxies is not None and proxies.get_proxy_mode() is not None:
        fault = "make_fx would replay the steps of this one solve whatever the data"
    if fault is not None:
        name = getattr(f, "__name__", type(f).__name__)
        raise RuntimeError(
            f"the equilibrium of {name} cannot be recorded: its number of steps depends on its residuals, and {fault}. "
            "Use the layer's form with a fixed number of steps, layer.exported(*inputs), or pass tensors with values"
        )


def _by_row(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch
