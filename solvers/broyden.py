"""Broyden's method with a bounded history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .solver import Solver, check_positive_integer

_LARGEST_STRETCH = 1e8  # a contraction of factor ρ needs 1/(1 − ρ); beyond this the secant is rounding noise


class BroydenMemory(NamedTuple):
    history: Tensor  # (rows, memory, dim): the steps s_0 … s_k since the last restart
    gram: Tensor  # (rows, memory, memory): their inner products
    filled: int


@dataclass(frozen=True)
class Broyden(Solver):
    """Broyden's "good" method on `g(z) = f(z) − z`, from the initial Jacobian −I, restarted when its history is full.

    Full steps allow a product form that keeps one vector a step (`s_k = z_{k+1} − z_k`) instead of two:
    `H_k = Π_{j<k} (I + s_{j+1} s_jᵀ / ‖s_j‖²)`, `p = H_k g(z_{k+1})`, `s_{k+1} = p / (1 − s_kᵀp / ‖s_k‖²)`.
    The product is applied through one small triangular system, so a step reads the history three times.

    Prefer it where `f` is costly and high accuracy is wanted: locally it converges superlinearly. Each step costs more
    than Anderson's. Source: Broyden (1965); product form: Kelley, Iterative Methods for Linear and Nonlinear Equations,
    SIAM (1995), §7.3.
    """

    memory: int = 12
    """Steps kept before a restart; one (batch, memory, dim) buffer."""

    def __post_init__(self) -> None:
        check_positive_integer(self, "memory")

    def init(self, z: Tensor) -> BroydenMemory:
        rows, dim = z.shape
        return BroydenMemory(
            z.new_zeros(rows, self.memory, dim), z.new_zeros(rows, self.memory, self.memory, dtype=torch.float64), 0
        )

    def step(self, memory: BroydenMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, BroydenMemory]:
        history, gram, filled = memory
        if filled == self.memory:
            filled = 0
        step = residual
        if filled:
            steps, products = history[:, :filled], gram[:, :filled, :filled]
            inverse_squares = products.diagonal(dim1=1, dim2=2).reciprocal().nan_to_num_(posinf=0.0)
            # c_j = s_jᵀ(the product of the factors before j applied to g), by forward substitution
            coupling = (products[:, :, 1:] * inverse_squares[:, None, :-1]).tril(-1)
            against = torch.bmm(residual[:, None], steps.mT).mT.double()
            system = torch.nn.functional.pad(-coupling, (0, 1))
            c = torch.linalg.solve_triangular(system, against, upper=False, unitriangular=True)[:, :, 0]
            c = c * inverse_squares
            if filled > 1:
                step = torch.baddbmm(residual[:, None], c[:, None, :-1].to(z.dtype), steps[:, 1:])[:, 0]
            stretch = (1 - c[:, -1:]).reciprocal().clamp_(-_LARGEST_STRETCH, _LARGEST_STRETCH).to(z.dtype)
            step = step * stretch
        history[:, filled] = step
        row = torch.bmm(step[:, None], history[:, : filled + 1].mT)[:, 0]
        gram[:, filled, : filled + 1] = gram[:, : filled + 1, filled] = row
        return z + step, BroydenMemory(history, gram, filled + 1)

    def restart(self, memory: BroydenMemory, rows: Tensor) -> BroydenMemory:
        for history in memory[:2]:
            history.masked_fill_(rows[:, None, None], 0)
        return memory
