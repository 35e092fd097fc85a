"""A step of Broyden's method as one Triton kernel, which reads the history twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from .broyden import BroydenMemory

_TILE = 4096
"""Entries of a history that a program holds at once."""


def proposal(memory: BroydenMemory, z: Tensor, residual: Tensor) -> Tensor:
    """The next iterate, after writing the step to it into the memory; one program per row."""
    rows, size, dim = memory.history.shape
    assert all(x.is_contiguous() for x in memory[:3])  # as `init` makes them; taking rows keeps them so
    z, residual = (x if x.stride(1) == 1 or dim == 1 else x.contiguous() for x in (z, residual))
    padded = triton.next_power_of_2(size)
    block = min(triton.next_power_of_2(max(dim, 1)), max(_TILE // padded, 16))
    found = z.new_empty(rows, dim)
    with torch.cuda.device_of(z):
        _broyden_step[(rows,)](
            *(memory.history, memory.coupling, memory.inverse_squares, z, z.stride(0), residual, residual.stride(0)),
            *(found, memory.filled, size, dim, padded, block),
            num_warps=min(4, max(1, padded * block // 256)),
        )
    return found


@triton.jit(do_not_specialize=["filled"])
def _broyden_step(history, coupling, inverse_squares, z, z_stride, residual, stride, found, filled, size, dim,
                  SIZE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    history, coupling = history + row * size * dim, coupling + row * size * size
    inverse_squares += row * size
    z, residual, found = z + row * z_stride, residual + row * stride, found + row * dim
    index = tl.arange(0, SIZE)
    kept, line = index < filled, index.to(tl.int64)[:, None] * dim

    against = tl.zeros([SIZE, BLOCK], history.dtype.element_ty)
    for first in range(0, dim, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < dim
        steps = tl.load(history + line + column[None, :], mask=kept[:, None] & inside[None, :], other=0.0)
        against += steps * tl.load(residual + column, mask=inside, other=0.0)[None, :]
    products = tl.sum(against, axis=1).to(tl.float64)

    # forward substitution: `solved` is y, `weights` are the c_j = y_j / ‖s_j‖² beside the steps s_{j+1}
    below = (index[:, None] < filled) & (index[None, :] < index[:, None])
    table = tl.load(coupling + index[:, None] * size + index[None, :], mask=below, other=0.0)
    inverse = tl.load(inverse_squares + index, mask=kept, other=0.0)
    solved, weights = tl.zeros([SIZE], tl.float64), tl.zeros([SIZE], tl.float64)
    last = tl.sum(solved, axis=0)
    for place in range(filled):
        here = index == place
        entries = tl.sum(tl.where(here[:, None], table, 0.0), axis=0)
        value = tl.sum(tl.where(here, products, 0.0), axis=0) - tl.sum(entries * solved, axis=0)
        solved = tl.where(here, value, solved)
        last = value * tl.sum(tl.where(here, inverse, 0.0), axis=0)
        weights = tl.where(index == place + 1, last, weights)
    weights = tl.where(kept, weights, 0.0).to(history.dtype.element_ty)
    stretch = 1.0 / (1.0 - last)
    stretch = tl.where(stretch > 1e8, 1e8, tl.where(stretch < -1e8, -1e8, stretch)).to(history.dtype.element_ty)

    products_with_new = tl.zeros([SIZE, BLOCK], history.dtype.element_ty)
    square = tl.zeros([BLOCK], history.dtype.element_ty)
    for first in range(0, dim, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < dim
        steps = tl.load(history + line + column[None, :], mask=kept[:, None] & inside[None, :], other=0.0)
        now = tl.load(residual + column, mask=inside, other=0.0)
        new = (now + tl.sum(weights[:, None] * steps, axis=0)) * stretch
        tl.store(history + filled.to(tl.int64) * dim + column, new, mask=inside)
        tl.store(found + column, tl.load(z + column, mask=inside, other=0.0) + new, mask=inside)
        products_with_new += steps * new[None, :]
        square += new * new

    length = tl.sum(square, axis=0).to(tl.float64)
    inverted = 1.0 / length
    inverted = tl.where(inverted < float("inf"), inverted, 0.0)  # that of zero, of a subnormal number, NaN
    tl.store(inverse_squares + filled, inverted)
    beside = tl.where(index == filled, length, tl.sum(products_with_new, axis=1).to(tl.float64))
    shifted = (index >= 1) & (index <= filled)
    before = tl.load(inverse_squares + index - 1, mask=shifted, other=0.0)  # of older steps, not the one just stored
    tl.store(coupling + filled * size + index - 1, -beside * before, mask=shifted)
