"""Triton kernels for the residual and both norms of a step, in one pass over the state."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 8192
"""Bytes of a row that a program holds at once, 32 per thread."""
_SHORT = 4096
"""Entries of a row up to which one program measures it all: this takes no longer than a second launch."""
_PARTS = 512
"""Largest number of parts of a row, whose sums one program adds up."""


def residual_and_norms(image: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """`f(z) − z`, and its 2-norms and those of `f(z)`, (2, rows) in float64; for float32 or float64.

    No square over- or underflows: float32 numbers are squared in float64, float64 numbers at one of three scales
    (Blue, ACM Trans. Math. Softw. 4 (1978), with the constants of Anderson, ibid. 44 (2017)). One launch for rows of
    up to 4096 entries, two for longer ones.
    """
    image, z = (x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous() for x in (image, z))
    rows, dim = image.shape
    residual, norms = image.new_empty(rows, dim), image.new_empty(2, rows, dtype=torch.float64)
    block = min(triton.next_power_of_2(max(dim, 1)), _BLOCK // image.element_size())
    columns = max(_SHORT, triton.cdiv(triton.cdiv(dim, _PARTS), block) * block)
    parts = max(triton.cdiv(dim, columns), 1)
    sums = norms if parts == 1 else norms.new_empty(2, rows, parts, 3)
    with torch.cuda.device_of(image):
        _measure[rows, parts](
            *(image, z, residual, sums, image.stride(0), z.stride(0), rows, dim, columns),
            *(parts == 1, image.dtype == torch.float64, block),
            num_warps=max(1, block * image.element_size() // 1024),
        )
        if parts > 1:
            _add_up[2 * rows,](sums, norms, parts, min(triton.next_power_of_2(parts), 128), num_warps=1)
    return residual, norms


@triton.jit(do_not_specialize=["rows"])
def _measure(image, z, residual, sums, image_stride, z_stride, rows, dim, columns, WHOLE: tl.constexpr,
             SCALED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Measure a part of a row: its norms if `WHOLE`, else the sums from which they are computed."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    nothing = tl.zeros([BLOCK], tl.float64)
    small, medium, large = nothing, nothing, nothing
    image_small, image_medium, image_large = nothing, nothing, nothing
    for first in range(part * columns, tl.minimum(part * columns + columns, dim), BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < dim
        now = tl.load(image + row * image_stride + column, mask=inside, other=0.0)
        difference = now - tl.load(z + row * z_stride + column, mask=inside, other=0.0)
        tl.store(residual + row * dim + column, difference, mask=inside)
        small, medium, large = _with_squares(small, medium, large, difference, SCALED)
        image_small, image_medium, image_large = _with_squares(image_small, image_medium, image_large, now, SCALED)
    parts = tl.num_programs(1)
    _store(sums, row * parts + part, small, medium, large, WHOLE)
    _store(sums, (rows + row) * parts + part, image_small, image_medium, image_large, WHOLE)


@triton.jit
def _add_up(sums, norms, parts, TOGETHER: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    nothing = tl.zeros([TOGETHER], tl.float64)
    small, medium, large = nothing, nothing, nothing
    for first in range(0, parts, TOGETHER):
        part = first + tl.arange(0, TOGETHER)
        entry = sums + (row * parts + part) * 3
        small += tl.load(entry, mask=part < parts, other=0.0)
        medium += tl.load(entry + 1, mask=part < parts, other=0.0)
        large += tl.load(entry + 2, mask=part < parts, other=0.0)
    _store(norms, row, small, medium, large, True)


@triton.jit
def _with_squares(small, medium, large, x, SCALED: tl.constexpr):
    """Add squares to the sums for small, medium and large numbers, each at a scale at which they are normal numbers."""
    x = tl.abs(x.to(tl.float64))
    if not SCALED:
        return small, medium + x * x, large
    is_small, is_large = x < 2.0**-511, x > 2.0**486
    raised = tl.where(is_small, x * 2.0**537, 0.0)
    lowered = tl.where(is_large, x * 2.0**-538, 0.0)
    kept = tl.where(is_small | is_large, 0.0, x)  # a NaN, too
    return small + raised * raised, medium + kept * kept, large + lowered * lowered


@triton.jit
def _store(to, place, small, medium, large, WHOLE: tl.constexpr):
    """Store the three sums or, if `WHOLE`, the norm: their scaled roots, combined as by `hypot`."""
    small, medium, large = tl.sum(small, axis=0), tl.sum(medium, axis=0), tl.sum(large, axis=0)
    if WHOLE:
        small, medium, large = tl.sqrt(small) * 2.0**-537, tl.sqrt(medium), tl.sqrt(large) * 2.0**538
        most, total = tl.maximum(tl.maximum(small, medium), large), small + medium + large
        a, b, c = small / most, medium / most, large / most
        ordinary = (most > 0) & (total < float("inf"))
        tl.store(to + place, tl.where(ordinary, most * tl.sqrt(a * a + b * b + c * c), total))
    else:
        tl.store(to + place * 3, small)
        tl.store(to + place * 3 + 1, medium)
        tl.store(to + place * 3 + 2, large)
