"""A step of GMRES as one Triton kernel, which projects twice only those rows that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from .gmres import GMRESMemory

_TILE = 2048
"""Entries of each half of a history that a program holds at once."""


def proposal_and_memory(memory: GMRESMemory, filled: int, z: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The next iterate, and `last` and `least` of the next memory, after writing a direction; one program per row."""
    from .gmres import CANCELLED, TURN

    (rows, dim), room = z.shape, memory.history.shape[1]
    assert all(x.is_contiguous() for x in memory[:3])  # as steps make them; taking rows keeps them so
    z, residual = (x if x.stride(1) == 1 or dim == 1 else x.contiguous() for x in (z, residual))
    padded = triton.next_power_of_2(room)
    block = min(triton.next_power_of_2(max(dim, 1)), max(_TILE // padded, 16))
    found, lower = z.new_empty(rows, dim), z.new_empty(rows, dim)
    here, size = z.new_empty(rows, 2, dim), z.new_empty(rows, 1)
    with torch.cuda.device_of(z):
        _gmres_step[(rows,)](
            *(memory.history, memory.last, memory.least, z, z.stride(0), residual, residual.stride(0)),
            *(found, lower, here, size, filled, room, dim),
            *(torch.finfo(z.dtype).eps, TURN, CANCELLED, padded, block),
            num_warps=min(4, max(1, padded * block // 256)),
        )
    return found, here, size


# Several threads may hold the same entry, each by a load of its own. Therefore a barrier separates loads and stores in
# one place, in either order: without it a late thread would load what another has already changed.


@triton.jit
def _root(square):
    """The root of the sum, in double precision: that of single precision takes subnormal numbers for 0."""
    return tl.sqrt(tl.sum(square, axis=0).to(tl.float64)).to(square.dtype)


@triton.jit
def _against(pairs, own, x, kept, dim, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The products of x, (dim,), with the second halves of the pairs, and with that of the new pair, `own`."""
    tl.debug_barrier()
    line = tl.arange(0, SIZE).to(tl.int64)[:, None] * (2 * dim) + dim
    products = tl.zeros([SIZE, BLOCK], x.dtype.element_ty)
    with_own = tl.zeros([BLOCK], x.dtype.element_ty)
    for first in range(0, dim, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < dim
        now = tl.load(x + column, mask=inside, other=0.0)
        both = kept[:, None] & inside[None, :]
        products += tl.load(pairs + line + column[None, :], mask=both, other=0.0) * now[None, :]
        with_own += tl.load(own + dim + column, mask=inside, other=0.0) * now
    return tl.sum(products, axis=1), tl.sum(with_own, axis=0)


@triton.jit
def _without(pairs, own, products, with_own, one, other, to, to_other, kept, dim, SIZE: tl.constexpr,
             BLOCK: tl.constexpr):  # fmt: skip
    """Write the pair (one, other) less the products with the pairs, and return the length of its second half."""
    line = tl.arange(0, SIZE).to(tl.int64)[:, None] * (2 * dim)
    square = tl.zeros([BLOCK], one.dtype.element_ty)
    for first in range(0, dim, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < dim
        both = kept[:, None] & inside[None, :]
        first_half = tl.load(pairs + line + column[None, :], mask=both, other=0.0)
        other_half = tl.load(pairs + line + dim + column[None, :], mask=both, other=0.0)
        spent = tl.sum(products[:, None] * first_half, axis=0)
        spent += with_own * tl.load(own + column, mask=inside, other=0.0)
        spent_other = tl.sum(products[:, None] * other_half, axis=0)
        spent_other += with_own * tl.load(own + dim + column, mask=inside, other=0.0)
        left_of_one = tl.load(one + column, mask=inside, other=0.0) - spent
        left = tl.load(other + column, mask=inside, other=0.0) - spent_other
        tl.debug_barrier()
        tl.store(to + column, left_of_one, mask=inside)
        tl.store(to_other + column, left, mask=inside)
        square += left * left
    return _root(square)


@triton.jit(do_not_specialize=["filled"])
def _gmres_step(history, last, least, z, z_stride, residual, stride, found, lower, here, size, filled, room, dim,
                ROUNDING: tl.constexpr, TURN: tl.constexpr, CANCELLED: tl.constexpr, SIZE: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    history, last, here = history + row * room * 2 * dim, last + row * 2 * dim, here + row * 2 * dim
    z, residual, found, lower = z + row * z_stride, residual + row * stride, found + row * dim, lower + row * dim
    index, before = tl.arange(0, SIZE), tl.load(least + row)
    own = history + filled.to(tl.int64) * 2 * dim  # the new pair
    ours = own + dim

    square, here_square = tl.zeros([BLOCK], z.dtype.element_ty), tl.zeros([BLOCK], z.dtype.element_ty)
    for first in range(0, dim, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < dim
        point = tl.load(z + column, mask=inside, other=0.0)
        now = tl.load(residual + column, mask=inside, other=0.0)
        tl.store(here + column, point, mask=inside)
        tl.store(here + dim + column, now, mask=inside)
        change = now - tl.load(last + dim + column, mask=inside, other=0.0)
        tl.store(own + column, point - tl.load(last + column, mask=inside, other=0.0), mask=inside)
        tl.store(ours + column, change, mask=inside)
        square += change * change
        here_square += now * now
    length, here_size = _root(square), _root(here_square)

    kept = index < filled
    lost = here_size * ROUNDING**0.5 > before
    if lost:  # among directions that are rounding errors: restart
        pair = history
        for _ in range(filled):
            for first in range(0, 2 * dim, BLOCK):
                column = first + tl.arange(0, BLOCK)
                tl.store(pair + column, 0.0 * before, mask=column < 2 * dim)
            pair += 2 * dim
        tl.debug_barrier()
    if filled > 0:
        products, _ = _against(history, own, ours, kept, dim, SIZE, BLOCK)
        left = _without(history, own, products, 0.0, own, ours, own, ours, kept, dim, SIZE, BLOCK)
        if left < CANCELLED * length:
            products, _ = _against(history, own, ours, kept, dim, SIZE, BLOCK)
            left = _without(history, own, products, 0.0, own, ours, own, ours, kept, dim, SIZE, BLOCK)
        length = left

    known = length > ROUNDING * here_size
    factor = tl.where(known, 1.0 / length, 0.0)
    square = tl.zeros([BLOCK], z.dtype.element_ty)
    tl.debug_barrier()
    for first in range(0, dim, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < dim
        direction = tl.load(own + column, mask=inside, other=0.0) * factor
        change = tl.load(ours + column, mask=inside, other=0.0) * factor
        tl.debug_barrier()
        tl.store(own + column, direction, mask=inside)
        tl.store(ours + column, change, mask=inside)
        square += direction * direction
    stretch = tl.where(known, _root(square), 1.0)

    # the least residual, computed from this point
    products, with_own = _against(history, own, residual, kept, dim, SIZE, BLOCK)
    left = _without(history, own, products, with_own, z, residual, found, lower, kept, dim, SIZE, BLOCK)
    if left < CANCELLED * here_size:
        products, with_own = _against(history, own, lower, kept, dim, SIZE, BLOCK)
        left = _without(history, own, products, with_own, found, lower, found, lower, kept, dim, SIZE, BLOCK)
    tl.store(size + row, left)
    onwards = before * before - left * left > TURN * left * left
    tl.debug_barrier()
    for first in range(0, dim, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < dim
        down = tl.load(lower + column, mask=inside, other=0.0)
        across = left * tl.load(ours + column, mask=inside, other=0.0)
        point = tl.load(found + column, mask=inside, other=0.0) + stretch * tl.where(onwards, down, across)
        tl.debug_barrier()
        tl.store(found + column, point, mask=inside)
