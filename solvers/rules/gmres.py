"""GMRES, for affine maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..checks import check_positive_integer
from ..fused import fusible_by_row
from .rule import PATIENCE, Solver

_ROOM = 16
"""Number of directions allocated at first; doubled when they are full."""
TURN = 0.1
"""Last fall of ‖r‖², relative to what is left, below which r hardly leads out of the space searched."""
CANCELLED = 0.5
"""Share of a length left by a projection, below which a second one follows: each step divides the error of the
directions' orthogonality by it, and a plateau of the residual takes many such steps."""
_MOST = 64
"""The longest history whose products a program holds in registers."""


class GMRESMemory(NamedTuple):
    history: Tensor  # (rows, room, 2·dim): p_j beside −A p_j, its change of the residual; the latter orthonormal
    last: Tensor  # (rows, 2, dim): the previous point, and its residual
    least: Tensor  # (rows, 1): the norm of the least residual in the space searched before
    filled: int | None  # None: before the first step


@dataclass(frozen=True)
class GMRES(Solver):
    """Restarted GMRES for affine maps `f(z) = M z + b`, that is for `A z = b` with `A = I − M`.

    Minimises the residual over `z_0 + span{r, A r, …}`, in the form of generalised conjugate residuals, which needs no
    small system: with `q = A p` orthonormal, `z ← z + Σ (qᵀr) p` and `r ← r − Σ (qᵀr) q`. The next p comes from
    `v = r` or, if r hardly fell and adds no new direction, from `v = ‖r‖ q`, as in Arnoldi's process. Products come
    from the evaluations: each step evaluates f at `z + τ v`, which is itself an iterate. Both the product and the next
    z start from evaluated points, so errors do not accumulate. τ is such that r changes by its own size, with ‖A‖
    estimated from the last product.

    Prefer it for linear problems: the backward pass of an equilibrium, an inner Newton step. Do not use it for
    nonlinear maps, whose changes it would mistake for products. Source: Saad, Schultz, SIAM J. Sci. Stat. Comput. 7
    (1986); Eisenstat, Elman, Schultz, SIAM J. Numer. Anal. 20 (1983); Jiránek, Rozložník, Numer. Algorithms 53 (2010).
    """

    restart: int = 50
    """Directions kept before a restart; one (batch, restart, 2·dim) buffer, which grows as it fills. Fewer directions
    save memory, and cost evaluations on hard problems."""

    may_be_caught: ClassVar[bool] = False
    alternatives: ClassVar[str] = "GMRES with a longer restart, or Anderson where f is not affine"

    def __post_init__(self) -> None:
        check_positive_integer(self, "restart")

    def patience(self, dim: int) -> int:
        return max(PATIENCE, min(self.restart, dim) + 2)  # a plateau may be as long as the search space is wide

    def init(self, z: Tensor) -> GMRESMemory:
        rows, dim = z.shape
        history = z.new_empty(rows, min(_ROOM, self.restart, dim), 2 * dim)
        return GMRESMemory(history, z.new_empty(rows, 2, dim), z.new_empty(rows, 1), filled=None)

    def step(self, memory: GMRESMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, GMRESMemory]:
        history, last, least, filled = memory
        most = min(self.restart, z.shape[1])  # more directions than dimensions are dependent
        if filled is None or filled == most:
            here = torch.stack((z, residual), dim=1)
            return fz, GMRESMemory(history, here, torch.linalg.vector_norm(residual, dim=1, keepdim=True), 0)
        if filled == history.shape[1]:
            history = _with_room(history, min(filled, most - filled))

        memory = GMRESMemory(history, last, least, filled)
        proposal, here, size = _operation(memory, z)(memory, filled, z, residual)
        return proposal, GMRESMemory(history, here, size, filled + 1)


def _operation(memory: GMRESMemory, z: Tensor) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """One Triton kernel where it can be used, else PyTorch."""
    if memory.history.shape[1] > _MOST or not fusible_by_row(z, memory.history):
        return proposal_and_memory
    from . import gmres_triton as triton

    return triton.proposal_and_memory


def proposal_and_memory(memory: GMRESMemory, filled: int, z: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The next iterate, and `last` and `least` of the next memory, after writing a direction into the history."""
    (history, last, least, _), (rows, dim) = memory, z.shape
    here = torch.stack((z, residual), dim=1)
    # between two evaluated points, so that the product with A is exact, whatever the search did
    change = here - last
    length = torch.linalg.vector_norm(change[:, 1], dim=1, keepdim=True)
    here_size, rounding = torch.linalg.vector_norm(residual, dim=1, keepdim=True), torch.finfo(z.dtype).eps
    if filled:
        lost = here_size * rounding**0.5 > least  # among directions that are rounding errors: restart
        if _unseen(lost) or lost.any():
            history[:, :filled].masked_fill_(lost.unsqueeze(2), 0)
        change, length = _without(history[:, :filled], change, length)
    # a difference below the rounding error of its terms is no direction
    known = length > rounding * here_size
    pair = change.mul_(torch.where(known, length.reciprocal(), 0).unsqueeze(2))
    history[:, filled] = pair.view(rows, 2 * dim)
    stride = torch.where(known, torch.linalg.vector_norm(pair[:, 0], dim=1, keepdim=True), 1)

    # the least residual, computed from this point, so that errors do not accumulate from step to step
    best, size = _without(history[:, : filled + 1], here.clone(), here_size)
    point, lower = best.unbind(1)
    following = torch.where(least.square() - size.square() > TURN * size.square(), lower, size * pair[:, 1])
    return torch.addcmul(point, stride, following), here, size


def _without(pairs: Tensor, pair: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """The pair, its second half made orthogonal to those of `pairs`, and the length of that half, before `length`.

    One projection, or two where needed, suffice for working precision (Kahan, Parlett). Overwrites the pair.
    """
    rows, _, dim = pair.shape
    row, directions = pair.view(rows, 1, 2 * dim), pairs[:, :, dim:].mT
    row.baddbmm_(torch.bmm(pair[:, 1:], directions), pairs, alpha=-1)
    left = torch.linalg.vector_norm(pair[:, 1], dim=1, keepdim=True)
    cancelled = left < CANCELLED * length
    if _unseen(cancelled) or cancelled.any():
        row.baddbmm_(
            torch.bmm(pair[:, 1:], directions).mul_(cancelled.unsqueeze(2)), pairs, alpha=-1
        )  # rows stay independent
        left = torch.linalg.vector_norm(pair[:, 1], dim=1, keepdim=True)
    return pair, left


def _unseen(x: Tensor) -> bool:
    """Whether reading values would wait for a GPU, or break a compiled graph."""
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def _with_room(x: Tensor, more: int) -> Tensor:
    rows, room, width = x.shape
    larger = x.new_empty(rows, room + more, width)
    larger[:, :room] = x
    return larger
