"""A state is a tensor, or any nesting of containers of tensors; solvers see it as one (batch, dim) matrix."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from typing_extensions import TypeVar

State: TypeAlias = Any
"""What `f` maps: a tensor, or nested tuples, named tuples, lists and dicts of tensors that share dim 0, the batch."""
S = TypeVar("S", default=State)

_HALF = (torch.float16, torch.bfloat16)


class Layout:
    """The shapes of a state, and the conversion to a flat (batch, dim) matrix and back.

    Half-precision states are handled in float32, so residuals and small systems keep their digits; `f` still sees the
    state's own dtype.
    """

    def __init__(self, state: State, name: str = "z0") -> None:
        parts, self.structure = _parts(state)
        if not parts or not all(isinstance(part, Tensor) for part in parts):
            raise TypeError(
                f"{name} is {_kind(state, parts)}: pass a tensor, or nested tuples, lists and dicts of tensors"
            )
        for part in parts:
            if part.ndim < 2:
                scalars = f"{name}[:, None] for a batch of scalars, " if part.ndim else ""
                raise ValueError(
                    f"{name} has shape {tuple(part.shape)}: dim 0 is the batch, and each row needs at least one more "
                    f"dim; pass {scalars}{name}[None] for one vector"
                )
            if not part.dtype.is_floating_point:
                hint = ", such as torch.view_as_real of a complex one" if part.dtype.is_complex else ""
                raise TypeError(f"{name} has dtype {part.dtype}: a state must have a real floating-point dtype{hint}")
            if (part.shape[0], part.dtype, part.device) != (parts[0].shape[0], parts[0].dtype, parts[0].device):
                raise ValueError(
                    f"the parts of {name} differ in batch, dtype or device: "
                    + ", ".join(f"{tuple(p.shape)} {p.dtype} {p.device}" for p in parts)
                )
        self.shapes = [part.shape[1:] for part in parts]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.batch, self.dtype, self.device = parts[0].shape[0], parts[0].dtype, parts[0].device
        self.working_dtype = torch.float32 if self.dtype in _HALF else self.dtype

    @property
    def key(self) -> Hashable:
        """Equal for states of the same containers, shapes and dtypes."""
        return self.structure, tuple(self.shapes), self.dtype, self.working_dtype

    @property
    def example(self) -> Any:
        """A state with the number of each part in its place."""
        return self.of_parts(list(range(len(self.shapes))))

    def widened(self) -> Layout:
        """The same, with flat matrices in double precision."""
        wide = copy.copy(self)
        wide.working_dtype = torch.float64
        return wide

    def flatten(self, state: State) -> Tensor:
        """(batch, dim), in the working dtype; a view where it can be."""
        if isinstance(state, Tensor) and state.ndim == 2 and state.dtype == self.working_dtype:
            return state
        parts = (part.reshape(part.shape[0], size) for part, size in zip(_parts(state)[0], self.sizes, strict=True))
        first, *others = parts
        flat = torch.cat((first, *others), dim=1) if others else first
        return flat if flat.dtype == self.working_dtype else flat.to(self.working_dtype)

    def unflatten(self, flat: Tensor) -> State:
        """The state whose `flatten` is `flat`, in the state's own dtype."""
        if flat.dtype != self.dtype:
            flat = flat.to(self.dtype)
        if self.structure is None:
            return flat if len(self.shapes[0]) == 1 else flat.view(flat.shape[0], *self.shapes[0])
        pieces = flat.split(self.sizes, dim=1)
        parts = [piece.reshape(len(piece), *shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
        return self.of_parts(parts)

    def of_parts(self, parts: list[Any]) -> State:
        """The state made of these parts, such as tensors of any dtype."""
        return parts[0] if self.structure is None else optree.tree_unflatten(self.structure, parts)

    def representable(self, flat: Tensor) -> Tensor:
        """The flat matrix as `f` will see it: rounded to the state's own dtype, kept in the working dtype."""
        return flat if self.dtype == self.working_dtype else flat.to(self.dtype).to(self.working_dtype)

    def check(self, output: Any, rows: int) -> State:
        """Return the output of `f`, or raise an error that says how it differs from the state passed to `f`."""
        if isinstance(output, Tensor) and self.structure is None and output.dtype == self.dtype:
            shape = output.shape  # the usual case, at little cost
            if len(shape) > 1 and shape[0] == rows and shape[1:] == self.shapes[0]:
                return output
        parts, structure = _parts(output)
        expected = [(rows, *shape) for shape in self.shapes]
        if not all(isinstance(part, Tensor) for part in parts) or not _alike(structure, self.structure):
            raise TypeError(
                f"f maps a state of shape {_shapes(self.structure, expected)} to {_kind(output, parts)}: "
                f"return a state of the same kind{'' if self.structure is None else ', with each part in its place'}"
            )
        found = [part.shape for part in parts]
        if found != expected:
            raise ValueError(
                f"f maps a state of shape {_shapes(self.structure, expected)} to one of shape "
                f"{_shapes(structure, found)}: it must keep the shape. If the solution's shape differs from the first "
                "input's, pass an initial state of the right shape (z0, or initial= of a layer)"
            )
        if all(part.dtype == self.dtype for part in parts):
            return output
        if autocast_dtype(self.device) is not None:
            return self.of_parts([part.to(self.dtype) for part in parts])
        raise TypeError(f"f maps a state of dtype {self.dtype} to {[str(p.dtype) for p in parts]}: keep the dtype")


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on this device; None if it is off, or if the device has none, such as meta."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Turn autocast off, so that products keep the precision of their tensors."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)


def unhooked() -> saved_tensors_hooks:
    """Inside, autograd saves tensors as they are: outer hooks do not see them, and in-place changes are allowed."""
    return saved_tensors_hooks(torch.Tensor.detach, _itself)  # an output that its own graph saves would keep it alive


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def usable(tensor: Any) -> Any:
    """Copy an inference tensor, so that it can be used outside inference mode; return other values unchanged."""
    if torch.compiler.is_compiling() or not isinstance(tensor, Tensor):
        return tensor
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def tree_map(change: Callable[..., Any], values: S, *others: Any) -> S:
    """Nested containers with every leaf changed; None is a leaf."""
    changed: Any = optree.tree_map(change, values, *others, none_is_leaf=True)  # type: ignore[arg-type]
    return changed  # type: ignore[no-any-return]


def flattened(values: Any) -> tuple[list[Any], Any]:
    """The leaves of nested containers, None included, and their structure."""
    return optree.tree_flatten(values, none_is_leaf=True)[:2]


def tree_leaves(values: Any) -> list[Any]:
    """The leaves of nested containers, None included."""
    return optree.tree_leaves(values, none_is_leaf=True)


def select(values: Any, rows: Tensor) -> Any:
    """The rows of every tensor in nested containers; other values as they are."""
    return tree_map(lambda value: value.index_select(0, rows) if isinstance(value, Tensor) else value, values)


def _parts(state: State) -> tuple[list[Any], Any]:
    """The leaves of a state and its structure, which is None for a tensor."""
    if isinstance(state, Tensor):
        return [state], None
    return flattened(state)


def _alike(structure: Any, expected: Any) -> bool:
    """Whether two structures are the same, except that a plain tuple and a named one may stand for each other."""
    if structure == expected:
        return True
    if structure is None or expected is None or structure.num_children != expected.num_children:
        return False
    kinds = structure.type, expected.type
    tuples = tuple in kinds and all(kind is tuple or optree.is_namedtuple_class(kind) for kind in kinds)
    if not tuples and (structure.type, structure.entries()) != (expected.type, expected.entries()):
        return False
    return structure.num_children > 0 and all(map(_alike, structure.children(), expected.children()))


def _kind(value: Any, parts: list[Any]) -> str:
    """What a value is, with the shapes of its tensors."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    kind = "None" if value is None else f"a {type(value).__name__}"
    if optree.is_namedtuple(value):
        kind = "a named tuple"
    if len(parts) == 1 and parts[0] is value:
        return kind
    if not parts:
        return f"an empty {type(value).__name__}"
    names = [part.shape if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    return f"{kind}, {_shapes(_parts(value)[1], names)}"


def _shapes(structure: Any, shapes: Sequence[Any]) -> str:
    """The shapes in their places, as in {'h': (8, 3), 'c': (8, 3)}."""
    shown = [_Shown(shape if isinstance(shape, str) else str(tuple(shape))) for shape in shapes]
    return repr(shown[0] if structure is None else optree.tree_unflatten(structure, shown))


class _Shown(str):
    """Text that prints without quotes."""

    __slots__ = ()
    __repr__ = str.__str__
