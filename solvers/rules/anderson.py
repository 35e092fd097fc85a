"""Anderson acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..checks import check_damping, check_positive_integer
from ..fused import fusible
from .rule import QuasiNewtonSolver, difference_into

_ABOVE_NOISE = 10.0
_FLOOR = 1e-300


class AndersonMemory(NamedTuple):
    residual_differences: Tensor  # (rows, memory, dim), a ring buffer, uninitialised beyond `filled`
    image_differences: Tensor  # (rows, memory, dim), likewise of f(z)
    gram: Tensor  # (rows, memory, memory) inner products of the first, float64
    raised: Tensor  # likewise: factors of its entries, 1 + ridge on the diagonal, else 1
    floor: Tensor  # likewise: added to keep the system regular if a difference vanished
    residual: Tensor  # (rows, dim) of the previous step
    image: Tensor  # (rows, dim) of the previous step
    filled: int
    slot: int | None  # the next to be written; None before the first step
    unmixed: int  # steps since the last mixing: their differences are not in the Gram matrix yet


@dataclass(frozen=True)
class Anderson(QuasiNewtonSolver):
    """Anderson acceleration (type II): mix the last images such that the mixed residual is smallest.

    With residuals `g_k = f(z_k) − z_k`, differences `ΔF, ΔG` of the last `memory` images and residuals:
    `γ = argmin ‖g_k − ΔG γ‖² + ridge·‖D γ‖²` (D the lengths of ΔG's columns) and
    `z_{k+1} = z_k + damping·g_k − (ΔF − (1 − damping)·ΔG) γ`, with a γ for each row. Between two such steps,
    `period − 1` plain ones `z_{k+1} = z_k + damping·g_k` are taken, which cost little and enlarge the space as well.

    The default: it needs few evaluations on most cells, at a modest cost per step. Prefer `Broyden` for the last digits
    of ill-conditioned problems, `Picard` where `f` is very cheap, `Monotone` where `z − f(z)` is monotone and `f`
    expands. Source: Anderson (1965); Walker, Ni, SIAM J. Numer. Anal. 49 (2011); for the period Pratapa, Suryanarayana,
    Pask, J. Comput. Phys. 306 (2016).
    """

    memory: int = 8
    """Differences kept; two (batch, memory, dim) buffers."""
    period: int = 2
    """Mix once every `period` steps. 3 suits linear maps, 1 strongly expanding ones."""
    damping: float = 1.0
    """In (0, 2]: weight of the mixed residual."""
    ridge: float | None = None
    """At least 0, relative to each diagonal entry of the Gram matrix, so that it also suits columns that shrink by
    orders of magnitude. None: 10 times the rounding unit of the working dtype, where the digits of the entries end."""

    alternatives: ClassVar[str] = "Broyden, or NewtonKrylov"

    def __post_init__(self) -> None:
        check_positive_integer(self, "memory")
        check_positive_integer(self, "period")
        check_damping(self)
        if self.ridge is not None and not (isinstance(self.ridge, (int, float)) and 0 <= self.ridge < float("inf")):
            raise ValueError(f"Anderson: ridge={self.ridge!r} must be a finite number of at least 0, or None")

    def init(self, z: Tensor) -> AndersonMemory:
        rows, dim = z.shape
        size = min(self.memory, max(dim, 1))  # more differences than dimensions are dependent
        eye = torch.eye(size, dtype=torch.float64, device=z.device).expand(rows, -1, -1)
        ridge = 10 * torch.finfo(z.dtype).eps if self.ridge is None else self.ridge
        return AndersonMemory(
            residual_differences=z.new_empty(rows, size, dim),
            image_differences=z.new_empty(rows, size, dim),
            gram=torch.zeros_like(eye, memory_format=torch.contiguous_format),
            raised=1 + ridge * eye,
            floor=_FLOOR * eye,
            residual=z,
            image=z,
            filled=0,
            slot=None,
            unmixed=0,
        )

    def step(self, memory: AndersonMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, AndersonMemory]:
        filled, slot, size = memory.filled, memory.slot, memory.gram.shape[1]
        plain = fz if self.damping == 1 else z.add(residual, alpha=self.damping)
        if slot is None:
            return plain, memory._replace(residual=residual, image=fz, slot=0)
        operations = _operations(z, size, self.period)
        operations.write_differences(memory, residual, fz)
        slot, unmixed = (slot + 1) % size, memory.unmixed + 1
        first, filled = filled == 0, min(filled + 1, size)
        memory = AndersonMemory(*memory[:5], residual, fz, filled, slot, unmixed)
        if unmixed < self.period and not first:
            return plain, memory
        found = operations.weights(memory, residual)
        return operations.mixed(fz, memory, found, self.damping, residual), memory._replace(unmixed=0)

    def forget(self, memory: AndersonMemory, rows: Tensor) -> AndersonMemory:
        for history in memory[:2]:
            history[:, : memory.filled].masked_fill_(rows[:, None, None], 0)
        identity = torch.eye(memory.gram.shape[1], dtype=torch.float64, device=rows.device)
        torch.where(rows[:, None, None], identity, memory.gram, out=memory.gram)
        return memory

    def transposed_inverse(self, memory: AndersonMemory, v: Tensor, noise: Tensor) -> Tensor:
        """`v − ΔG (ΔGᵀΔG + ν²I)⁻¹ ΔFᵀ v`, the transpose of what maps a residual to its step, ν well above the noise."""
        filled = memory.filled
        if not filled:
            return v
        differences, images = memory.residual_differences[:, :filled], memory.image_differences[:, :filled]
        against = torch.bmm(images, v.unsqueeze(2)).double()
        _multiply(memory)
        eye = torch.eye(filled, dtype=torch.float64, device=v.device)
        system = _system(memory) + (_ABOVE_NOISE * noise.double()).square().unsqueeze(2) * eye
        found = _solve(system, against).mT.to(v.dtype)
        return torch.baddbmm(v.unsqueeze(1), found, differences, alpha=-1).squeeze(1)


class Operations(NamedTuple):
    """The operations of a step on its histories."""

    write_differences: Callable[[AndersonMemory, Tensor, Tensor], None]
    """Writes the differences of the residual and the image from those of the last step into the next slot."""
    weights: Callable[[AndersonMemory, Tensor], Tensor]
    """Returns γ, (rows, filled), after writing the products of the unmixed differences into the Gram matrix."""
    mixed: Callable[[Tensor, AndersonMemory, Tensor, float, Tensor], Tensor]
    """Returns the next iterate, from the image, the memory, the weights, the damping and the residual."""


def _operations(z: Tensor, size: int, period: int) -> Operations:
    """Triton kernels where they can be used: three or four launches, which read each history once; else PyTorch."""
    if size > 16 or period > 4 or not fusible(z):
        return PYTORCH
    from . import anderson_triton as triton

    return Operations(triton.write_differences, triton.weights, triton.mixed)


def write_differences(memory: AndersonMemory, residual: Tensor, image: Tensor) -> None:
    assert memory.slot is not None
    difference_into(memory.residual_differences.select(1, memory.slot), residual, memory.residual)
    difference_into(memory.image_differences.select(1, memory.slot), image, memory.image)


def weights(memory: AndersonMemory, residual: Tensor) -> Tensor:
    _multiply(memory)
    # these products could be updated from those of the last step, but would lose digits as the residual falls
    against = torch.bmm(residual.unsqueeze(1), memory.residual_differences[:, : memory.filled].mT).mT.double()
    return _solve(_system(memory), against).squeeze(2).to(residual.dtype)


def mixed(image: Tensor, memory: AndersonMemory, weights: Tensor, damping: float, residual: Tensor) -> Tensor:
    differences, images = memory.residual_differences[:, : memory.filled], memory.image_differences[:, : memory.filled]
    proposal = torch.baddbmm(image.unsqueeze(1), weights.unsqueeze(1), images, alpha=-1).squeeze(1)
    if damping == 1:
        return proposal
    mixed_residual = torch.baddbmm(residual.unsqueeze(1), weights.unsqueeze(1), differences, alpha=-1).squeeze(1)
    return proposal.add(mixed_residual, alpha=damping - 1)


PYTORCH = Operations(write_differences, weights, mixed)


def _multiply(memory: AndersonMemory) -> None:
    """Write the missing inner products into the Gram matrix."""
    filled, stop = memory.filled, memory.slot or memory.filled
    start = stop - min(memory.unmixed, filled)
    differences, gram = memory.residual_differences[:, :filled], memory.gram[:, :filled, :filled]
    # a few rows times a matrix is the product that BLAS does fastest
    for new in [slice(max(start, 0), stop)] + [slice(start, None)] * (start < 0):
        products = torch.bmm(differences[:, new], differences.mT)
        gram[:, new] = products
        gram[:, :, new] = products.mT


def _system(memory: AndersonMemory) -> Tensor:
    filled = memory.filled
    gram, raised, floor = (x[:, :filled, :filled] for x in (memory.gram, memory.raised, memory.floor))
    return torch.addcmul(floor, gram, raised)


def _solve(system: Tensor, against: Tensor) -> Tensor:
    """The solution of small symmetric positive definite systems."""
    if not torch.compiler.is_compiling():
        return torch.linalg.solve_ex(system, against)[0]
    # a call of LAPACK costs more than these few operations, which the compiler fuses
    table = torch.cat((system, against), dim=2)
    eye = torch.eye(system.shape[1], dtype=system.dtype, device=system.device)
    for column in range(system.shape[1]):
        pivot = table[:, column : column + 1] / table[:, column : column + 1, column : column + 1]
        table = table - (table[:, :, column : column + 1] - eye[:, column : column + 1]) * pivot
    return table[:, :, -1:]
