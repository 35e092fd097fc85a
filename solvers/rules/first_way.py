"""The first way to make products with the Jacobian of a map that works, and that the values of the map confirm."""

from __future__ import annotations

import warnings
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem
from .jacobian_products import WAYS, Map, finite_differences, spread_at, suited

HIDDEN = 1e-2
"""Change of f, relative to that of z, below which a derivative hardly matters beside the identity."""
ALIKE = 0.1
"""Relative difference up to which a product and a finite difference count as the same derivative."""
CLEAR = 3
"""Times that a contradiction is as large as what finite differences differ by among themselves."""
SHARE = 1 / 32
"""Of the rows in which finite differences lie above the rounding of f, those in which a contradiction may be chance."""


class FirstWay(NamedTuple):
    """How products with a Jacobian can be made."""

    position: int  # in `WAYS`
    spent: int  # evaluations of f for finding it
    slope: Tensor  # (rows, 1): ‖J v‖ / ‖v‖


def first_way(problem: Problem, f: Map, z: Tensor, image: Tensor, v: Tensor) -> FirstWay:
    """The first way in `WAYS` that works for f.

    A way that finite differences contradict is skipped: a cell may detach z, or the backward of an `autograd.Function`
    may compute something that autograd does not see.

    Args:
        problem: whose state z is.
        f: the problem, or its residual.
        z, image: a point, and its image under f.
        v: the direction of the product that is compared, (rows, dim).
    """
    length, spent = torch.linalg.vector_norm(v, dim=1, keepdim=True), 0
    v, spread = torch.where(length > 0, v / length, 0), spread_at(problem, z, image)

    def found(position: int, product: Tensor) -> FirstWay:
        slope = torch.linalg.vector_norm(product, dim=1, keepdim=True)
        return FirstWay(position, spent, torch.where(slope.isfinite() & (slope > 0), slope, 1))

    for position, way in enumerate(WAYS[:-1]):
        spent += 1
        try:
            with warnings.catch_warnings():
                # PyTorch's own warning at its first forward-mode derivative
                warnings.filterwarnings("ignore", message=r".*torch\.jit\.script")
                products = way(f, z, image, spread)
                product = products(v)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever an operation or a cell without that derivative raises
            continue
        off, more = contradiction(problem, f, z, image, v, product, products)
        spent += more
        undefined = image.isfinite().all(dim=1) & ~product.isfinite().all(dim=1)
        if not (off.any() or undefined.any()):
            return found(position, product)
    spent += 1
    return found(len(WAYS) - 1, finite_differences(f, z, image, spread)(v))


def contradiction(
    problem: Problem, f: Map, z: Tensor, image: Tensor, v: Tensor, product: Tensor, products: Map
) -> tuple[Tensor, int]:
    """(rows,) relative difference of products `J v` from finite differences, and the evaluations of f spent.

    0 where they agree, and where finite differences tell no derivative: where they lie within the rounding of f, or
    depend as much on the length and sign of the step, as at the kink of a ReLU. Since kinks in many rows look smooth in
    some by chance, a contradiction must show along a second direction, too, and in more than a small SHARE of the rows.

    Args:
        problem, f, z, image, v: as for `first_way`.
        product, products: what is said to be `J v`, and the map `v ↦ J v`.
    """
    off, telling, spent = _contradiction(problem, f, z, image, v, product)
    if not off.any():
        return off, spent
    draw = torch.Generator("cpu").manual_seed(0)
    other = torch.randn(v.shape, generator=draw, dtype=torch.float64, device="cpu").to(v)
    again, _, more = _contradiction(problem, f, z, image, other, products(other))
    off = torch.where(again > 0, off, 0)
    few = (off > 0).sum() <= SHARE * telling.sum()
    return torch.where(few, 0, off), spent + more + 1


def _contradiction(
    problem: Problem, f: Map, z: Tensor, image: Tensor, v: Tensor, product: Tensor
) -> tuple[Tensor, Tensor, int]:
    """The same along one direction, and (rows,) bool: where finite differences lie above the rounding of f.

    Only those tell anything that hardly change with half the step or its opposite. Of two lengths of the step, the
    shorter one counts: the second is the one at which f, by the product, changes in half its digits.
    """
    norm, rounding = partial(torch.linalg.vector_norm, dim=1), problem.rounding
    own, length = norm(z), norm(v)
    least = 0.0 if problem.relative_to_start else max(HIDDEN, problem.spread)  # of F, the unit is unknown

    def difference(spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        change = finite_differences(f, z, image, spread)(v)
        size, step = norm(change), spread[:, 0] * (1 + own) / length
        threshold = least * length + rounding * (size * own / length + norm(image)) / step
        off = norm(product - change)
        return change, size.isfinite() & (size > threshold), torch.where(off > ALIKE * size + threshold, off, 0)

    spread = problem.spread * (torch.ones_like(v[:, :1]) if problem.relative_to_start else suited(z, image))
    change, telling, off = difference(spread)
    if not (telling & (off > 0)).any():
        return torch.zeros_like(off), telling, 1
    natural = (norm(image) / norm(product) * length / (1 + own))[:, None]
    short = spread.minimum(torch.where(natural > 0, problem.spread * natural, spread))
    nearer, telling_near, off_near = difference(short)
    if not (telling & (off > 0) & ~(telling_near & (off_near == 0))).any():
        return torch.zeros_like(off), telling, 2

    def roughness(change: Tensor, spread: Tensor) -> Tensor:
        others = [finite_differences(f, z, image, part)(v) for part in (spread / 2, -spread)]
        return torch.stack([norm(other - change) for other in others]).amax(dim=0)

    rough, rough_near = roughness(change, spread), roughness(nearer, short)
    stable, stable_near = CLEAR * rough < norm(change), CLEAR * rough_near < norm(nearer)
    agrees = stable_near & (norm(product - nearer) <= ALIKE * norm(nearer))  # rounding would not
    narrow = telling_near & stable_near
    wide = telling & stable & (off > CLEAR * rough) & ~(narrow | agrees)
    narrow &= off_near > CLEAR * rough_near
    return torch.where(narrow, off_near / norm(nearer), torch.where(wide, off / norm(change), 0)), telling, 6
