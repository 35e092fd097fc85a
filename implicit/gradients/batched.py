"""Functions that need a tensor's values, applied where `vmap` maps over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import refuse_second_derivatives
from .root import transformed

Map = Callable[[Tensor], Tensor]


def one_by_one(function: Map, x: Tensor) -> Tensor:
    """`function(x)`, in turn for each entry that `torch.func.vmap`, or a batch of gradients, maps over."""
    if transformed():
        found: Tensor = _Mapped.apply(function, x)
        return found
    return _unbatched(function, x)


class _Mapped(torch.autograd.Function):
    @staticmethod
    def forward(function: Map, x: Tensor) -> Tensor:
        return function(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        refuse_second_derivatives()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], function: Map, x: Tensor) -> tuple[Tensor, int]:
        return torch.stack([one_by_one(function, each) for each in x.unbind(in_dims[1])]), 0


def _unbatched(function: Map, x: Tensor) -> Tensor:
    """The same for `is_grads_batched=True`, whose older vmap has no rules for autograd functions."""
    if not torch._C._functorch.is_legacy_batchedtensor(x):
        return function(x)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    found = [_unbatched(function, each) for each in torch._remove_batch_dim(x, level, 1, 0)]
    mapped: Tensor = torch._add_batch_dim(torch.stack(found), 0, level)
    return mapped


def refuse_batch(grad: Tensor) -> None:
    """Raise where a batch of gradients is to be differentiated again."""
    if torch._C._functorch.is_legacy_batchedtensor(grad):
        raise RuntimeError(
            "a batch of gradients through an equilibrium (is_grads_batched=True, vectorize=True) has no graph: "
            "drop create_graph=True, or take the gradients one by one, or with torch.func"
        )
