"""Functions that need a tensor's values, applied where `vmap` maps over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functorch import batch_of_gradients, each_gradient, transformed
from .base import refuse_second_derivatives

Map = Callable[[Tensor], Tensor]


def one_by_one(function: Map, x: Tensor) -> Tensor:
    """`function(x)`, in turn for each entry that `torch.func.vmap`, or a batch of gradients, maps over."""
    if transformed():
        found: Tensor = _Mapped.apply(function, x)
        return found
    return each_gradient(function, x)


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


def refuse_batch(grad: Tensor) -> None:
    """Raise where a batch of gradients is to be differentiated again."""
    if batch_of_gradients(grad):
        raise RuntimeError(
            "a batch of gradients through an equilibrium (is_grads_batched=True, vectorize=True) has no graph: "
            "drop create_graph=True, or take the gradients one by one, or with torch.func"
        )
