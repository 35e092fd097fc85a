"""What a stretch hands to the next one: its tensors, which become buffers, and the numbers beside them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import optree
import torch
from torch import Tensor

from .eager import Stretch


def buffer_like(tensor: Tensor) -> Tensor:
    """A buffer of the tensor's shape, strides and values."""
    return tensor.detach().clone(memory_format=torch.preserve_format)


def tensors_of(stretch: Stretch) -> tuple[list[Tensor], Callable[[list[Tensor]], Stretch]]:
    """The tensors of a stretch (last point, image, residual, memory), and a function that rebuilds it from others."""
    state = (stretch.points[-1], stretch.image, stretch.residual, stretch.memory)
    flattened: Any = optree.tree_flatten(state, none_is_leaf=True)  # type: ignore[arg-type]
    leaves, structure = flattened
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def rebuilt(tensors: list[Tensor]) -> Stretch:
        replaced: list[Any] = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            replaced[place] = tensor
        again: Any = optree.tree_unflatten(structure, replaced)
        point, image, residual, memory = again
        return Stretch([point], stretch.norms, image, residual, memory, stretch.fresh, stretch.exact)

    return [leaves[place] for place in places], rebuilt


def numbers_of(memory: Any) -> Hashable:
    """The structure of a memory, what it holds besides tensors, and the shapes of its tensors."""
    leaves, structure = optree.tree_flatten(memory, none_is_leaf=True)
    return structure, tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves)


def share(one: Tensor, other: Tensor) -> bool:
    """Whether they lie in one storage."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
