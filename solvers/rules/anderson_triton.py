"""Anderson acceleration's operations on its histories, as Triton kernels that read each history once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from .anderson import AndersonMemory

_TILE = 4096
"""Entries of a history that a program holds at once: 16 KiB in flight for each, a few programs per multiprocessor."""
_PROGRAMS = 4096
"""Number of programs that fills a large GPU evenly; more would leave more sums to add up."""
_PARTS = 256
"""Largest number of parts of a row, whose sums one program adds up."""


def write_differences(memory: AndersonMemory, residual: Tensor, image: Tensor) -> None:
    """Write both differences from the last step into the next slot, in one launch."""
    rows, size, dim = memory.residual_differences.shape
    assert all(x.is_contiguous() for x in memory[:5])  # as `init` makes them; taking rows keeps them so
    residual, image, last, last_image = map(_rows, (residual, image, memory.residual, memory.image))
    block = min(triton.next_power_of_2(dim), 1024)
    with torch.cuda.device_of(residual):
        _write_differences[(rows * triton.cdiv(dim, block),)](
            *(residual, last, memory.residual_differences, residual.stride(0), last.stride(0)),
            *(image, last_image, memory.image_differences, image.stride(0), last_image.stride(0)),
            *(memory.slot, size, dim, block),
            num_warps=max(1, block // 256),
        )


def weights(memory: AndersonMemory, residual: Tensor) -> Tensor:
    """The weights, (rows, filled), after writing the missing products into the Gram matrix; one or two launches."""
    rows, size, dim = memory.residual_differences.shape
    filled, count, padded = memory.filled, min(memory.unmixed, memory.filled), triton.next_power_of_2(size)
    residual, newest, new = _rows(residual), ((memory.slot or 0) - 1) % size, triton.next_power_of_2(count)
    tile = _TILE * 4 // residual.element_size() // (2 if new > 2 else 1)  # sums for each new one are held as well
    narrow = padded * dim <= _TILE  # one warp may do it all
    block = min(triton.next_power_of_2(dim), (tile // 4 if narrow else tile) // padded)
    blocks = triton.cdiv(dim, block)
    parts = 1 if narrow else min(blocks, _PARTS, triton.cdiv(_PROGRAMS, max(rows, 1)))
    columns = triton.cdiv(blocks, parts) * block
    parts = triton.cdiv(dim, columns)
    found = residual.new_empty(rows, filled)
    history = (memory.residual_differences, residual, residual.stride(0))
    systems = (memory.gram, memory.raised, memory.floor, found)
    numbers = (newest, filled, size)
    with torch.cuda.device_of(residual):
        if narrow:
            _weights[(rows,)](*history, *systems, *numbers, dim, count, new, padded, block, num_warps=1)
            return found
        sums = residual.new_empty(rows, parts, new + 1, padded, dtype=torch.float64)
        _sums[rows, parts](*history, sums, *numbers, dim, columns, new, padded, block, num_warps=4)
        together = min(32, 512 // (new * padded))
        _solve[(rows,)](sums, *systems, *numbers, parts, count, new, padded, together, num_warps=1)
    return found


def mixed(image: Tensor, memory: AndersonMemory, weights: Tensor, damping: float, residual: Tensor) -> Tensor:
    """`f(z) − ΔF γ + (damping − 1)·(residual − ΔG γ)`, in one launch."""
    rows, size, dim = memory.image_differences.shape
    image, residual, padded = _rows(image), _rows(residual), triton.next_power_of_2(size)
    tile = _TILE * 4 // image.element_size()
    block = min(triton.next_power_of_2(dim), tile // padded)
    found = image.new_empty(rows, dim)
    with torch.cuda.device_of(image):
        _mixed[(rows * triton.cdiv(dim, block),)](
            *(image, memory.image_differences, image.stride(0), residual, memory.residual_differences),
            *(residual.stride(0), weights, found, memory.filled, size, dim, float(damping), padded, block),
            num_warps=min(4, max(1, block * image.element_size() // 512)),  # a history in 16 bytes per thread
        )
    return found


def _rows(x: Tensor) -> Tensor:
    """The matrix with contiguous entries in each row, as the kernels read them."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


# numbers that change from step to step are not specialised, or 1 and multiples of 16 would recompile the kernels


@triton.jit
def _place(dim, BLOCK: tl.constexpr):
    """The row and the columns of a program in a one-dimensional grid, as a grid is short in its other dimensions."""
    blocks = tl.cdiv(dim, BLOCK)
    row = tl.program_id(0) // blocks
    return row.to(tl.int64), (tl.program_id(0) - row * blocks) * BLOCK + tl.arange(0, BLOCK)


@triton.jit(do_not_specialize=["slot"])
def _write_differences(
    residual, last, residual_differences, residual_stride, last_stride,
    image, last_image, image_differences, image_stride, last_image_stride,
    slot, size, dim, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = _place(dim, BLOCK)
    inside = column < dim
    to = (row * size + slot) * dim + column
    now = tl.load(residual + row * residual_stride + column, mask=inside)
    before = tl.load(last + row * last_stride + column, mask=inside)
    image_now = tl.load(image + row * image_stride + column, mask=inside)
    image_before = tl.load(last_image + row * last_image_stride + column, mask=inside)
    tl.store(residual_differences + to, now - before, mask=inside)
    tl.store(image_differences + to, image_now - image_before, mask=inside)


@triton.jit
def _products(differences, residual, newest, filled, size, dim, start, stop, NEW: tl.constexpr, SIZE: tl.constexpr,
              BLOCK: tl.constexpr):  # fmt: skip
    """Products over columns of all differences with the residual, (1, SIZE), and new ones, newest first (NEW, SIZE)."""
    one = tl.arange(0, 1)[:, None, None]
    new = tl.arange(0, NEW)[:, None, None]  # NEW is a power of 2, so there may be one too many
    slot = newest - new
    slot = tl.where(slot < 0, slot + size, slot).to(tl.int64)
    index = tl.arange(0, SIZE)[None, :, None].to(tl.int64)
    against = tl.zeros([1, SIZE, BLOCK], differences.dtype.element_ty)
    products = tl.zeros([NEW, SIZE, BLOCK], differences.dtype.element_ty)
    for first in range(start, stop, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, None, :]
        inside = column < dim
        all_of_them = tl.load(differences + index * dim + column, mask=inside & (index < filled), other=0.0)
        against += all_of_them * tl.load(residual + one + column, mask=inside, other=0.0)
        # read just before, so these are in the cache
        products += all_of_them * tl.load(differences + slot * dim + column, mask=inside & (new < filled), other=0.0)
    return tl.sum(against, axis=2).to(tl.float64), tl.sum(products, axis=2).to(tl.float64)


@triton.jit
def _solved(against, products, gram, raised, floor, found, newest, filled, size, COUNT: tl.constexpr,
            NEW: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """Write the new products into the Gram matrix, and the raised system's solution, by Gauss–Jordan, into `found`."""
    index, new = tl.arange(0, SIZE), tl.arange(0, NEW)
    inside = (index[:, None] < filled) & (index[None, :] < filled)
    entry = index[:, None] * size + index[None, :]
    table = tl.load(gram + entry, mask=inside, other=0.0)
    for place in tl.static_range(COUNT):
        slot = newest - place
        slot = tl.where(slot < 0, slot + size, slot)
        product = tl.sum(tl.where(new[:, None] == place, products, 0.0), axis=0)
        table = tl.where(index[:, None] == slot, product[None, :], table)
        table = tl.where(index[None, :] == slot, product[:, None], table)
    tl.debug_barrier()  # a late thread would load an entry that another has already changed
    tl.store(gram + entry, table, mask=inside)
    table = table * tl.load(raised + entry, mask=inside, other=0.0) + tl.load(floor + entry, mask=inside, other=0.0)
    solution = tl.sum(against, axis=0)
    for pivot in range(filled):
        here = index == pivot
        line = tl.sum(tl.where(here[:, None], table, 0.0), axis=0)
        column = tl.sum(tl.where(here[None, :], table, 0.0), axis=1)
        diagonal = tl.sum(tl.where(here, line, 0.0), axis=0)
        line = line / diagonal
        value = tl.sum(tl.where(here, solution, 0.0), axis=0) / diagonal
        table = tl.where(here[:, None], line[None, :], table - column[:, None] * line[None, :])
        solution = tl.where(here, value, solution - column * value)
    tl.store(found + index, solution.to(found.dtype.element_ty), mask=index < filled)


@triton.jit(do_not_specialize=["newest", "filled"])
def _sums(differences, residual, stride, sums, newest, filled, size, dim, columns, NEW: tl.constexpr,
          SIZE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    against, products = _products(
        differences + row * size * dim, residual + row * stride, newest, filled, size, dim,
        part * columns, tl.minimum(part * columns + columns, dim), NEW, SIZE, BLOCK,
    )  # fmt: skip
    index, new = tl.arange(0, SIZE)[None, :], tl.arange(0, NEW)[:, None]
    to = sums + (row * tl.num_programs(1) + part) * (NEW + 1) * SIZE + index
    tl.store(to + NEW * SIZE + tl.arange(0, 1)[:, None], against)
    tl.store(to + new * SIZE, products)


@triton.jit(do_not_specialize=["newest", "filled", "parts"])
def _solve(sums, gram, raised, floor, found, newest, filled, size, parts, COUNT: tl.constexpr, NEW: tl.constexpr,
           SIZE: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    index, new = tl.arange(0, SIZE)[None, None, :], tl.arange(0, NEW)[None, :, None]
    against = tl.zeros([TOGETHER, 1, SIZE], tl.float64)
    products = tl.zeros([TOGETHER, NEW, SIZE], tl.float64)
    for first in range(0, parts, TOGETHER):
        part = first + tl.arange(0, TOGETHER)[:, None, None]
        entry = sums + (row * parts + part) * (NEW + 1) * SIZE + index
        against += tl.load(entry + NEW * SIZE, mask=part < parts, other=0.0)
        products += tl.load(entry + new * SIZE, mask=part < parts, other=0.0)
    system = row * size * size
    _solved(
        tl.sum(against, axis=0), tl.sum(products, axis=0), gram + system, raised + system, floor + system,
        found + row * filled, newest, filled, size, COUNT, NEW, SIZE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["newest", "filled"])
def _weights(differences, residual, stride, gram, raised, floor, found, newest, filled, size, dim,
             COUNT: tl.constexpr, NEW: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`_sums` and `_solve` at once, for rows so short that another launch would cost more."""
    row = tl.program_id(0).to(tl.int64)
    against, products = _products(
        differences + row * size * dim, residual + row * stride, newest, filled, size, dim, 0, dim, NEW, SIZE, BLOCK
    )
    system = row * size * size
    _solved(
        against, products, gram + system, raised + system, floor + system, found + row * filled,
        newest, filled, size, COUNT, NEW, SIZE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["filled"])
def _mixed(image, image_differences, image_stride, residual, residual_differences, residual_stride, weights, found,
           filled, size, dim, DAMPING: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, column = _place(dim, BLOCK)
    index = tl.arange(0, SIZE)[:, None]
    inside, history = column < dim, (row * size + index) * dim
    kept = inside[None, :] & (index < filled)
    weight = tl.load(weights + row * filled + index, mask=index < filled, other=0.0)
    now = tl.load(image + row * image_stride + column, mask=inside, other=0.0)
    differences = tl.load(image_differences + history + column[None, :], mask=kept, other=0.0)
    proposal = now - tl.sum(weight * differences, axis=0)
    if DAMPING != 1.0:
        now = tl.load(residual + row * residual_stride + column, mask=inside, other=0.0)
        differences = tl.load(residual_differences + history + column[None, :], mask=kept, other=0.0)
        share = tl.full([BLOCK], DAMPING - 1.0, now.dtype)
        proposal += share * (now - tl.sum(weight * differences, axis=0))
    tl.store(found + row * dim + column, proposal, mask=inside)
