"""Broyden's method with a bounded history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..checks import check_positive_integer
from ..fused import fusible_by_row
from .rule import RestartingSolver, product_into

_LARGEST_STRETCH = 1e8  # a contraction of factor ρ needs 1/(1 − ρ); beyond this the secant is rounding noise
_MOST = 32
"""The longest history whose products a program holds in registers."""


class BroydenMemory(NamedTuple):
    history: Tensor  # (rows, memory, dim): the steps s_0 … s_k since the last restart, touched as it fills
    coupling: Tensor  # (rows, memory, memory): −s_iᵀs_{j+1} / ‖s_j‖² below the diagonal, float64
    inverse_squares: Tensor  # (rows, memory): 1 / ‖s_j‖², 0 for a step that vanished, float64
    filled: int


@dataclass(frozen=True)
class Broyden(RestartingSolver):
    """Broyden's "good" method on `g(z) = f(z) − z`, from the initial Jacobian −I, restarted when its history is full.

    Full steps allow a product form that keeps one vector per step (`s_k = z_{k+1} − z_k`) instead of two:
    `H_k = Π_{j<k} (I + s_{j+1} s_jᵀ / ‖s_j‖²)`, `p = H_k g(z_{k+1})`, `s_{k+1} = p / (1 − s_kᵀp / ‖s_k‖²)`.
    The product is applied by one small triangular solve, so a step reads the history three times.

    Prefer it where `f` is costly and high accuracy is needed: it converges superlinearly near the solution. A step
    costs more than Anderson's. Source: Broyden (1965); product form: Kelley, Iterative Methods for Linear and Nonlinear
    Equations, SIAM (1995), §7.3.
    """

    memory: int = 12
    """Steps kept before a restart; one (batch, memory, dim) buffer."""

    alternatives: ClassVar[str] = "Anderson, or NewtonKrylov"

    def __post_init__(self) -> None:
        check_positive_integer(self, "memory")

    def init(self, z: Tensor) -> BroydenMemory:
        rows, dim = z.shape
        return BroydenMemory(
            history=z.new_empty(rows, self.memory, dim),
            coupling=z.new_zeros(rows, self.memory, self.memory, dtype=torch.float64),
            inverse_squares=z.new_zeros(rows, self.memory, dtype=torch.float64),
            filled=0,
        )

    def step(self, memory: BroydenMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, BroydenMemory]:
        if memory.filled == self.memory:
            memory = memory._replace(filled=0)
        proposed = _operation(memory, z)(memory, z, residual)
        return proposed, memory._replace(filled=memory.filled + 1)

    def forget(self, memory: BroydenMemory, rows: Tensor) -> BroydenMemory:
        memory.history[:, : memory.filled].masked_fill_(rows[:, None, None], 0)
        for small in (memory.coupling, memory.inverse_squares):
            small[rows] = 0
        return memory


def _operation(memory: BroydenMemory, z: Tensor) -> Callable[[BroydenMemory, Tensor, Tensor], Tensor]:
    """One Triton kernel where it can be used, else PyTorch."""
    if memory.history.shape[1] > _MOST or not fusible_by_row(z, memory.history):
        return proposal
    from . import broyden_triton as triton

    return triton.proposal


def proposal(memory: BroydenMemory, z: Tensor, residual: Tensor) -> Tensor:
    """The next iterate, after writing the step to it into the memory."""
    history, coupling, inverse_squares, filled = memory
    newest = history[:, filled]
    if filled:
        steps = history[:, :filled]
        # c_j = s_jᵀ(the product of the factors before j applied to g) / ‖s_j‖², by forward substitution
        against = torch.bmm(residual[:, None], steps.mT).mT.double()
        system = coupling[:, :filled, :filled]
        c = torch.linalg.solve_triangular(system, against, upper=False, unitriangular=True)
        c = c[:, :, 0] * inverse_squares[:, :filled]
        stretch = (1 - c[:, -1:]).reciprocal_().clamp_(-_LARGEST_STRETCH, _LARGEST_STRETCH).to(z.dtype)
        step = residual
        if filled > 1:
            step = torch.baddbmm(residual[:, None], c[:, None, :-1].to(z.dtype), steps[:, 1:])[:, 0]
        product_into(newest, step, stretch)
    else:
        newest.copy_(residual)
    row = torch.bmm(newest[:, None], history[:, : filled + 1].mT)[:, 0].double()
    inverse_squares[:, filled] = row[:, -1].reciprocal().nan_to_num_(posinf=0.0)
    if filled:
        product_into(coupling[:, filled, :filled], row[:, 1:], inverse_squares[:, :filled]).neg_()
    return z + newest
