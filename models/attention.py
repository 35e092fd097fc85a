"""Attention by PyTorch's fused kernels, for any number of rows and of leading dimensions."""

from __future__ import annotations

from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 2**16 - 1
"""Rows at most that the CUDA kernels take in one launch."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`; dimensions before (batch, heads, tokens, width) become rows of the batch."""

    def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout, causal, scale=scale, enable_gqa=enable_gqa
        )

    every = query, key, value, mask
    rows = torch.broadcast_shapes(*(each.shape[:-3] for each in every if each is not None))
    if len(rows) < 2 and rows.numel() <= MOST:
        return fused(*every)
    if mask is not None and mask.ndim == 2:
        every = query, key, value, mask[None]
    folded = (each if each is None else each.expand(*rows, *each.shape[-3:]).flatten(0, -4) for each in every)
    parts = (repeat(None) if each is None else each.split(MOST) for each in folded)
    first, *others = [fused(*part) for part in zip(*parts, strict=False)]  # type: ignore[arg-type]
    return (torch.cat((first, *others)) if others else first).unflatten(0, rows)
