"""Attention of all layers at once by fused kernels, for which `torch.vmap` has no rule."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from implicit.functorch import batched

from ..attention import attend


def attend_by_layers(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` within `torch.vmap`, whose layers become rows of the batch."""
    every = query, key, value, attn_mask
    if any(each is not None and batched(each) for each in every):
        output: Tensor = _Layers.apply(*every, dropout_p, is_causal, scale, enable_gqa)
        return output
    return attend(*every, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


class _Layers(torch.autograd.Function):
    """Only its rule for vmap runs, whose operations autograd follows."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        raise NotImplementedError("attention of layers outside torch.vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        (*tensors, dropout, causal, scale, enable_gqa), layers = inputs, info.batch_size
        rank = max(
            each.ndim - (dim is not None) for each, dim in zip(tensors, in_dims, strict=False) if each is not None
        )

        def layered(each: Tensor, dim: int | None) -> Tensor:
            """(layers, …), of this rank within a layer."""
            each = each[None] if dim is None else each.movedim(dim, 0)
            missing = rank + 1 - each.ndim
            return each.unflatten(0, (-1, *missing * [1])).expand(layers, *rank * [-1])

        every = (each if each is None else layered(each, dim) for each, dim in zip(tensors, in_dims, strict=False))
        inputs = *every, dropout, causal
        return attend_by_layers(*inputs, scale=scale, enable_gqa=enable_gqa), 0


def multi_head_attention(*args: Any, **options: Any) -> Any:
    """`F.multi_head_attention_forward`, which as it is hides the operations in it from a `TorchFunctionMode`."""
    whole = F.multi_head_attention_forward
    seen = {**whole.__globals__, "has_torch_function": lambda tensors: False}
    return FunctionType(whole.__code__, seen, None, whole.__defaults__, whole.__closure__)(*args, **options)
