"""GMRES, for affine maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .solver import Solver, check_positive_integer, product_into

_ROOM = 16
"""Directions for which there is room at first; doubled as they fill it."""
_STAGNATION = 1e-3
"""Relative fall of a step below which its residual is no new direction."""


class GMRESMemory(NamedTuple):
    directions: Tensor  # (rows, room, dim): p_j
    changes: Tensor  # (rows, room, dim): by which p_j lowers the residual, A p_j, orthonormal
    point: Tensor  # (rows, dim): that of least residual in the space searched
    residual: Tensor  # (rows, dim): there
    filled: int | None  # None: start anew


@dataclass(frozen=True)
class GMRES(Solver):
    """Restarted GMRES for affine maps `f(z) = M z + b`, that is for `A z = b` with `A = I − M`.

    The residual is least over `z_0 + span{r, A r, …}`, in the form of generalised conjugate residuals, which needs no
    small system: `q = A p` orthonormal, `z ← z + (qᵀr) p`, `r ← r − (qᵀr) q`, next p from r. The product `A r` is read
    off the evaluation of f at `z + τ r`, a step from the best point whose length τ suits ‖A‖ as seen last, so each
    step is an iterate in its own right and its residual is true. Where r does not fall, as for rotations, the search
    goes on along the last q, as Arnoldi's process does.

    Prefer it for linear problems: the backward pass of an equilibrium, an inner Newton step. Not for nonlinear
    maps, whose changes it mistakes for products. Source: Saad, Schultz, SIAM J. Sci. Stat. Comput. 7 (1986);
    Eisenstat, Elman, Schultz, SIAM J. Numer. Anal. 20 (1983).
    """

    restart: int = 50
    """Directions kept before starting anew; two (batch, restart, dim) buffers, which grow as they fill. Fewer save
    memory, and cost evaluations where many are needed."""

    strays: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive_integer(self, "restart")

    def init(self, z: Tensor) -> GMRESMemory:
        rows, dim = z.shape
        first, second = z.new_empty(2, rows, min(_ROOM, self.restart, dim), dim).unbind()
        return GMRESMemory(first, second, point=z, residual=z, filled=None)

    def step(self, memory: GMRESMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, GMRESMemory]:
        directions, changes, point, best, filled = memory
        most = min(self.restart, z.shape[1])  # more directions than dimensions are dependent
        if filled is None or filled == most:
            return fz, GMRESMemory(directions, changes, z, residual, 0)
        if filled == directions.shape[1]:
            directions, changes = (_with_room(x, min(filled, most - filled)) for x in (directions, changes))
        direction, change = z - point, best - residual
        # a step that changes the residual by its own size, as far as the last one shows; a contraction takes it whole
        stride = torch.linalg.vector_norm(direction, dim=1) / torch.linalg.vector_norm(change, dim=1)
        stride = stride.nan_to_num(nan=1.0).clamp(max=1).unsqueeze(1)
        if filled:
            # twice is enough to orthogonalise to working precision (Kahan, Parlett); the direction follows in one go
            total = change.new_zeros(())
            for _ in range(2):
                shares = torch.bmm(change.unsqueeze(1), changes[:, :filled].mT)
                change = torch.baddbmm(change.unsqueeze(1), shares, changes[:, :filled], alpha=-1).squeeze(1)
                total = total + shares
            direction = torch.baddbmm(direction.unsqueeze(1), total, directions[:, :filled], alpha=-1).squeeze(1)
        length = torch.linalg.vector_norm(change, dim=1, keepdim=True).clamp_(min=torch.finfo(z.dtype).tiny)
        direction = product_into(directions[:, filled], direction, 1 / length)
        change = product_into(changes[:, filled], change, 1 / length)
        fall = torch.linalg.vecdot(change, best).unsqueeze(1)
        point, lower = torch.addcmul(point, fall, direction), torch.addcmul(best, fall, change, value=-1)
        size = torch.linalg.vector_norm(best, dim=1, keepdim=True)
        following = torch.where(fall.abs() > _STAGNATION * size, lower, size * change)
        proposal = torch.addcmul(point, stride, following)
        return proposal, GMRESMemory(directions, changes, point, lower, filled + 1)


def _with_room(x: Tensor, more: int) -> Tensor:
    rows, room, dim = x.shape
    larger = x.new_empty(rows, room + more, dim)
    larger[:, :room] = x
    return larger
