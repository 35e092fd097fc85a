"""Accelerated forward steps for monotone problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..checks import check_positive_integer
from .rule import Solver, difference_into

_RIDGE = 1e-4


class MonotoneMemory(NamedTuple):
    residual_differences: Tensor  # (rows, memory, dim), a ring, of accepted points, touched as it fills
    point_differences: Tensor  # (rows, memory, dim), likewise
    gram: Tensor  # (rows, memory, memory): inner products of the first, float64
    point: Tensor  # (rows, dim): the last accepted
    residual: Tensor  # (rows, dim): at that point
    mixed_point: Tensor  # (rows, dim): from which the last forward step was taken
    mixed_residual: Tensor  # (rows, dim): predicted there
    length: Tensor  # (rows, 1): of the forward step
    plain: Tensor  # (rows, 1) bool: the last forward step was taken from the accepted point itself
    filled: int
    slot: int | None  # the next to be written; None before the first point


@dataclass(frozen=True)
class Monotone(Solver):
    """Forward steps on `z − f(z)`, accelerated and safeguarded: for f that expands while `z − f(z)` is monotone.

    `z_{k+1} = z̄ + τ ḡ`, where z̄, ḡ mix the last accepted points and residuals such that the residual is smallest (as
    in Anderson's method), and τ is the length that would have lowered the residual most in the last step (Barzilai,
    Borwein), at most halved or doubled. A point whose residual exceeds that of the last accepted one is refused; then
    forward steps from the accepted point are tried, with lengths halved until one is accepted. For `z − f(z)` strongly
    monotone and Lipschitz, such as `z − v − P(z)` with `P(z) = −Wᵀσ(Wz + b)` and any weight norm, some length always
    is, so every row converges.

    Prefer it for monotone cells whose weights are not normalised, where other solvers fail. A step costs about twice
    Anderson's. It is of no use where the residual must grow before it falls. Source: forward splitting as in
    Winston, Kolter, "Monotone operator equilibrium networks", NeurIPS 2020; safeguard in the spirit of Zhang,
    O'Donoghue, Boyd, SIAM J. Optim. 30 (2020).
    """

    memory: int = 20
    """Differences kept; two (batch, memory, dim) buffers."""

    backtracks: ClassVar[bool] = True
    alternatives: ClassVar[str] = "NewtonKrylov"

    def __post_init__(self) -> None:
        check_positive_integer(self, "memory")

    def init(self, z: Tensor) -> MonotoneMemory:
        rows, dim = z.shape
        first, second = z.new_empty(2, rows, self.memory, dim).unbind()
        return MonotoneMemory(
            first,
            second,
            gram=z.new_zeros(rows, self.memory, self.memory, dtype=torch.float64),
            point=z,
            residual=z,
            mixed_point=z,
            mixed_residual=z,
            length=z.new_ones(rows, 1),
            plain=z.new_ones(rows, 1, dtype=torch.bool),
            filled=0,
            slot=None,
        )

    def step(self, memory: MonotoneMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, MonotoneMemory]:
        if memory.slot is None:
            return fz, memory._replace(point=z, residual=residual, mixed_point=z, mixed_residual=residual, slot=0)
        size = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
        accepted = size <= torch.linalg.vector_norm(memory.residual, dim=1, keepdim=True)
        # how the forward part of the step changed the residual
        change = memory.mixed_residual - residual
        shown = torch.linalg.vecdot(z - memory.mixed_point, change) / torch.linalg.vecdot(change, change)
        shown = shown.unsqueeze(1)
        usable = (shown > 0) & shown.isfinite()
        refused = torch.where(memory.plain, torch.where(usable, shown, 1).minimum(memory.length / 2), memory.length)
        # lengths that jump make rows with little history oscillate
        adapted = shown.clamp(max=1).maximum(memory.length / 2).minimum(memory.length * 2)
        adapted = torch.where(usable, adapted, memory.length)
        length = torch.where(accepted, adapted, refused)
        memory = self._remember(memory, memory.slot, z, residual, accepted)
        mixed_point, mixed_residual = self._mix(memory)
        plain = ~accepted
        mixed_point = torch.where(plain, memory.point, mixed_point)
        mixed_residual = torch.where(plain, memory.residual, mixed_residual)
        proposal = torch.addcmul(mixed_point, length, mixed_residual)
        return proposal, memory._replace(
            mixed_point=mixed_point, mixed_residual=mixed_residual, length=length, plain=plain
        )

    def _remember(
        self, memory: MonotoneMemory, slot: int, z: Tensor, residual: Tensor, accepted: Tensor
    ) -> MonotoneMemory:
        """Store the differences of accepted rows in the ring, and clear those of the others."""
        filled = min(memory.filled + 1, self.memory)
        refused = ~accepted[:, :, None]
        differences = memory.residual_differences[:, :filled]
        newest = difference_into(differences[:, slot], residual, memory.residual)
        difference_into(memory.point_differences[:, slot], z, memory.point)
        differences.masked_fill_(refused, 0)
        memory.point_differences[:, :filled].masked_fill_(refused, 0)
        products = torch.bmm(newest.unsqueeze(1), differences.mT).squeeze(1)
        memory.gram[:, slot, :filled] = memory.gram[:, :filled, slot] = products.double()
        memory.gram.masked_fill_(refused, 0)
        return memory._replace(
            point=torch.where(accepted, z, memory.point),
            residual=torch.where(accepted, residual, memory.residual),
            filled=filled,
            slot=(slot + 1) % self.memory,
        )

    def _mix(self, memory: MonotoneMemory) -> tuple[Tensor, Tensor]:
        """The mixture of the accepted points with the least residual, and that residual."""
        filled = memory.filled
        differences = memory.residual_differences[:, :filled]
        gram = memory.gram[:, :filled, :filled]
        against = torch.bmm(memory.residual.unsqueeze(1), differences.mT).mT.double()
        diagonal = gram.diagonal(dim1=1, dim2=2)
        system = gram + torch.diag_embed(torch.where(diagonal > 0, _RIDGE * diagonal, 1))
        weights = torch.linalg.solve_ex(system, against)[0].mT.to(differences.dtype)
        points = memory.point_differences[:, :filled]
        mixed_point = torch.baddbmm(memory.point.unsqueeze(1), weights, points, alpha=-1).squeeze(1)
        mixed_residual = torch.baddbmm(memory.residual.unsqueeze(1), weights, differences, alpha=-1).squeeze(1)
        return mixed_point, mixed_residual
