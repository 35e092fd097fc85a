"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .solver import Solver, check_damping, check_positive_integer


class AndersonMemory(NamedTuple):
    residual_differences: Tensor  # (rows, memory, dim), a ring
    image_differences: Tensor  # (rows, memory, dim), a ring: differences of f(z)
    gram: Tensor  # (rows, memory, memory) inner products of the residual differences
    residual: Tensor  # (rows, dim) of the previous step
    image: Tensor  # (rows, dim) of the previous step
    steps: int


@dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration (type II): mix the last images so that the mixed residual is as small as possible.

    With residuals `g_k = f(z_k) − z_k`, differences `ΔF, ΔG` of the last `memory` images and residuals:
    `γ = argmin ‖g_k − ΔG γ‖² + ridge·‖γ‖²` (columns of ΔG at unit length) and
    `z_{k+1} = z_k + damping·g_k − (ΔF − (1 − damping)·ΔG) γ`, each row with its own γ.

    The default: it needs few evaluations on most cells at a modest cost a step. Prefer `Broyden` for the last digits
    of ill-conditioned problems, `Picard` where `f` is very cheap. Source: Anderson (1965); Walker, Ni,
    SIAM J. Numer. Anal. 49 (2011).
    """

    memory: int = 5
    """Differences kept; two (batch, memory, dim) buffers."""
    damping: float = 1.0
    """In (0, 2]: weight of the mixed residual."""
    ridge: float | None = None
    """At least 0, relative to the mean diagonal (trace / memory) of the Gram matrix of unit columns; None: 10 times
    the rounding unit of the working dtype, where its entries end."""

    def __post_init__(self) -> None:
        check_positive_integer(self, "memory")
        check_damping(self)
        if self.ridge is not None and not 0 <= self.ridge < float("inf"):
            raise ValueError(f"Anderson: ridge={self.ridge!r} must be a finite number of at least 0, or None")

    def init(self, z: Tensor) -> AndersonMemory:
        rows, dim = z.shape
        ring = z.new_zeros(2, rows, self.memory, dim)
        empty = z.new_empty(rows, 0)
        return AndersonMemory(ring[0], ring[1], z.new_zeros(rows, self.memory, self.memory), empty, empty, 0)

    def step(self, memory: AndersonMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, AndersonMemory]:
        differences, images, gram, last_residual, last_image, steps = memory
        if steps == 0:
            plain = fz if self.damping == 1 else z.add(residual, alpha=self.damping)
            return plain, memory._replace(residual=residual, image=fz, steps=1)
        slot = (steps - 1) % self.memory
        newest = differences[:, slot]
        torch.sub(residual, last_residual, out=newest)
        torch.sub(fz, last_image, out=images[:, slot])
        products = torch.bmm(differences, torch.stack((newest, residual), dim=2))
        gram[:, slot] = gram[:, :, slot] = products[:, :, 0]
        weights = self._weights(gram, products[:, :, 1]).to(z.dtype)[:, None]
        mixed = torch.baddbmm(fz[:, None], weights, images, alpha=-1)[:, 0]
        if self.damping != 1:
            mixed_residual = torch.baddbmm(residual[:, None], weights, differences, alpha=-1)[:, 0]
            mixed = mixed.add(mixed_residual, alpha=self.damping - 1)
        return mixed, AndersonMemory(differences, images, gram, residual, fz, steps + 1)

    def _weights(self, gram: Tensor, products: Tensor) -> Tensor:
        """γ, (rows, memory), solved in float64; slots not yet filled get 0."""
        ridge = 10 * torch.finfo(gram.dtype).eps if self.ridge is None else self.ridge
        gram = gram.double()
        squares = gram.diagonal(dim1=1, dim2=2)
        # unit columns: history shrinks by orders of magnitude as the iteration converges, and only a ridge
        # relative to each column leaves the newest, smallest ones a say
        scale = squares.rsqrt().nan_to_num_(nan=0.0, posinf=0.0)
        system = gram * scale[:, :, None] * scale[:, None, :]
        system.diagonal(dim1=1, dim2=2).clamp_(min=1.0).mul_(1.0 + ridge)
        weights, _ = torch.linalg.solve_ex(system, (products * scale)[:, :, None])
        return weights[:, :, 0].mul_(scale).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

    def restart(self, memory: AndersonMemory, rows: Tensor) -> AndersonMemory:
        for history in memory[:3]:
            history.masked_fill_(rows[:, None, None], 0)
        return memory
