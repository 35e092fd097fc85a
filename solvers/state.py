"""A state is a tensor, or a tuple of tensors, with the batch in dim 0; solvers see it as one (batch, dim) matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .autocast import autocast_dtype

State: TypeAlias = Tensor | tuple[Tensor, ...]
"""What `f` maps: a tensor, or a (named) tuple of tensors that share dim 0, the batch."""

_HALF = (torch.float16, torch.bfloat16)


class Layout:
    """The shapes of a state, and the way from it to a flat (batch, dim) matrix and back.

    Half-precision states are handled in float32, so that residuals and small systems keep their digits;
    `f` still sees the state's own dtype.
    """

    def __init__(self, state: State, name: str = "z0") -> None:
        if isinstance(state, Tensor):
            self.container: Callable[[list[Tensor]], State] | None = None
        elif isinstance(state, tuple) and state and all(isinstance(part, Tensor) for part in state):
            kind: Any = type(state)
            self.container = kind._make if hasattr(kind, "_make") else tuple
        else:
            raise TypeError(f"{name} is a {type(state).__name__}: pass a tensor, or a non-empty tuple of tensors")
        parts = self._parts(state)
        for part in parts:
            if part.ndim < 2:
                raise ValueError(
                    f"{name} has shape {tuple(part.shape)}: dim 0 is the batch, and each row needs at least one more "
                    f"dim; pass {name}[:, None] for a batch of scalars, {name}[None] for one vector"
                )
            if not part.dtype.is_floating_point:
                raise TypeError(f"{name} has dtype {part.dtype}: a state is of a real floating-point dtype")
            if (part.shape[0], part.dtype, part.device) != (parts[0].shape[0], parts[0].dtype, parts[0].device):
                raise ValueError(
                    f"the parts of {name} differ in batch, dtype or device: "
                    + ", ".join(f"{tuple(p.shape)} {p.dtype} {p.device}" for p in parts)
                )
        self.shapes = [part.shape[1:] for part in parts]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.batch, self.dtype, self.device = parts[0].shape[0], parts[0].dtype, parts[0].device
        self.working_dtype = torch.float32 if self.dtype in _HALF else self.dtype

    @staticmethod
    def _parts(state: State) -> tuple[Tensor, ...]:
        return (state,) if isinstance(state, Tensor) else state

    def flatten(self, state: State) -> Tensor:
        """(batch, dim), in the working dtype; a view where it can be."""
        if isinstance(state, Tensor) and state.ndim == 2 and state.dtype == self.working_dtype:
            return state
        parts = [part.reshape(part.shape[0], size) for part, size in zip(self._parts(state), self.sizes, strict=True)]
        flat = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return flat if flat.dtype == self.working_dtype else flat.to(self.working_dtype)

    def unflatten(self, flat: Tensor) -> State:
        """The state whose `flatten` is `flat`, in the state's own dtype."""
        if flat.dtype != self.dtype:
            flat = flat.to(self.dtype)
        if self.container is None:
            return flat if len(self.shapes[0]) == 1 else flat.view(flat.shape[0], *self.shapes[0])
        pieces = flat.split(self.sizes, dim=1)
        return self.container([p.reshape(p.shape[0], *s) for p, s in zip(pieces, self.shapes, strict=True)])

    def representable(self, flat: Tensor) -> Tensor:
        """The flat matrix as `f` will see it: rounded to the state's own dtype, kept in the working dtype."""
        return flat if self.dtype == self.working_dtype else flat.to(self.dtype).to(self.working_dtype)

    def check(self, output: Any, rows: int) -> State:
        """The output of `f`, or an error that says how it differs from the state that `f` was given."""
        if isinstance(output, Tensor) and self.container is None and output.dtype == self.dtype:
            shape = output.shape  # the usual case, at little cost
            if len(shape) > 1 and shape[0] == rows and shape[1:] == self.shapes[0]:
                return output
        if isinstance(output, Tensor) if self.container is None else isinstance(output, tuple):
            parts = self._parts(output)
            if not all(isinstance(part, Tensor) for part in parts):
                kinds = ", ".join(type(part).__name__ for part in parts)
                raise TypeError(f"f returned a tuple of {kinds}: return a state of the same kind as z0")
            expected = [(rows, *shape) for shape in self.shapes]
            if [part.shape for part in parts] != expected:
                raise ValueError(
                    f"f maps a state of shape {_show(expected)} to one of shape {_show([p.shape for p in parts])}: "
                    "it must keep the shape. If the solution's shape differs from the first input's, pass an initial "
                    "state of the right shape (z0, or initial= of an Equilibrium)"
                )
            if all(part.dtype == self.dtype for part in parts):
                return output
            if autocast_dtype(self.device) is not None:
                cast = [part.to(self.dtype) for part in parts]
                return cast[0] if self.container is None else self.container(cast)
            raise TypeError(f"f maps a state of dtype {self.dtype} to {[str(p.dtype) for p in parts]}: keep the dtype")
        raise TypeError(f"f returned a {type(output).__name__}: return a state of the same kind as z0")


def _show(shapes: list[Any]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)
