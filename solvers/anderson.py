"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .solver import Solver, check_damping, check_positive_integer


class AndersonMemory(NamedTuple):
    residual_differences: Tensor  # (rows, memory, dim), a ring, each of unit length
    image_differences: Tensor  # (rows, memory, dim), a ring: of f(z), divided by the same lengths
    gram: Tensor  # (rows, memory, memory) inner products of the first, float64; unfilled slots as in the identity
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
    """At least 0, relative to the diagonal of the Gram matrix of unit columns, so to its trace; None: 10 times the
    rounding unit of the working dtype, where the digits of its entries end."""

    def __post_init__(self) -> None:
        check_positive_integer(self, "memory")
        check_damping(self)
        if self.ridge is not None and not 0 <= self.ridge < float("inf"):
            raise ValueError(f"Anderson: ridge={self.ridge!r} must be a finite number of at least 0, or None")

    def init(self, z: Tensor) -> AndersonMemory:
        rows, dim = z.shape
        ring = z.new_zeros(2, rows, self.memory, dim)
        gram = torch.eye(self.memory, dtype=torch.float64, device=z.device).repeat(rows, 1, 1)
        empty = z.new_empty(rows, 0)
        return AndersonMemory(ring[0], ring[1], gram, empty, empty, 0)

    def step(self, memory: AndersonMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, AndersonMemory]:
        differences, images, gram, last_residual, last_image, steps = memory
        if steps == 0:
            plain = fz if self.damping == 1 else z.add(residual, alpha=self.damping)
            return plain, memory._replace(residual=residual, image=fz, steps=1)
        slot = (steps - 1) % self.memory
        newest, image = differences[:, slot], images[:, slot]
        torch.sub(residual, last_residual, out=newest)
        torch.sub(fz, last_image, out=image)
        # unit columns: history shrinks by orders of magnitude as the iteration converges, and only a ridge
        # relative to each column leaves the newest, smallest ones a say
        length = torch.linalg.vector_norm(newest, dim=1, keepdim=True).clamp_(min=torch.finfo(z.dtype).tiny)
        newest.div_(length)
        image.div_(length)
        # one row times a matrix is the product that BLAS does fastest
        columns = differences.mT
        row = torch.bmm(newest[:, None], columns)[:, 0]
        against = torch.bmm(residual[:, None], columns).mT.double()
        gram[:, slot] = gram[:, :, slot] = row
        gram[:, slot, slot] = 1 + self._ridge(z.dtype)
        solved, _ = torch.linalg.solve_ex(gram, against)
        weights = solved.mT.to(z.dtype)
        mixed = torch.baddbmm(fz[:, None], weights, images, alpha=-1)[:, 0]
        if self.damping != 1:
            mixed_residual = torch.baddbmm(residual[:, None], weights, differences, alpha=-1)[:, 0]
            mixed = mixed.add(mixed_residual, alpha=self.damping - 1)
        return mixed, AndersonMemory(differences, images, gram, residual, fz, steps + 1)

    def _ridge(self, dtype: torch.dtype) -> float:
        return 10 * torch.finfo(dtype).eps if self.ridge is None else self.ridge

    def restart(self, memory: AndersonMemory, rows: Tensor) -> AndersonMemory:
        for history in memory[:2]:
            history.masked_fill_(rows[:, None, None], 0)
        identity = torch.eye(self.memory, dtype=torch.float64, device=rows.device)
        torch.where(rows[:, None, None], identity, memory.gram, out=memory.gram)
        return memory
