"""Newton's method with Krylov inner solves."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .gmres import GMRES
from .iteration import iterate
from .linearised import Linearised, first_way
from .problem import Problem, Settings
from .solver import Solver, check_positive_integer

_SUFFICIENT = 1e-4
_SHORTEST = 2.0**-10
_LOOSEST, _TIGHTEST = 0.5, 1e-4


class NewtonMemory(NamedTuple):
    point: Tensor  # (rows, dim): from which the last step was taken
    direction: Tensor  # (rows, dim): of the last step
    size: Tensor  # (rows, 1): ‖f(z) − z‖ at `point`
    length: Tensor  # (rows, 1): of the last step, in (0, 1]
    forcing: Tensor  # (rows, 1): relative tolerance of the last inner solve
    way: int  # how products with the Jacobian are made, a position in WAYS; −1 before it is known


@dataclass(frozen=True)
class NewtonKrylov(Solver):
    """Inexact Newton on `g(z) = f(z) − z`: `z⁺ = z + λ δ` with `(I − J) δ = g(z)` solved by GMRES, matrix-free.

    Products with `J = ∂f/∂z` are exact, by forward mode or twice reverse mode, or finite differences where f cannot be
    differentiated; for a piecewise smooth f (ReLU) the step is the semismooth Newton step. The inner tolerance tightens
    as the residual falls (Eisenstat, Walker); λ is halved until the residual falls.

    Prefer it for many digits, for stiff problems, and where f expands (see also `Monotone`); `evaluations` counts f
    and Jacobian products alike. Each step waits for its inner solve: not for GPUs and tiny states. Source: Knoll,
    Keyes, J. Comput. Phys. 193 (2004); Eisenstat, Walker, SIAM J. Sci. Comput. 17 (1996).
    """

    inner_steps: int = 30
    """Largest number of products a step; two (batch, inner_steps, dim) buffers, touched as they fill."""

    _problem: ClassVar[Problem | None] = None
    _settings: ClassVar[Settings | None] = None

    def __post_init__(self) -> None:
        check_positive_integer(self, "inner_steps")

    def bind(self, problem: Problem, settings: Settings) -> NewtonKrylov:
        bound = copy.copy(self)
        object.__setattr__(bound, "_problem", problem)
        object.__setattr__(bound, "_settings", settings)
        return bound

    def init(self, z: Tensor) -> NewtonMemory:
        ones = z.new_ones(len(z), 1)
        return NewtonMemory(z, torch.zeros_like(z), torch.inf * ones, ones, _LOOSEST * ones, way=-1)

    def step(self, memory: NewtonMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, NewtonMemory]:
        size = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
        fallen = size <= (1 - _SUFFICIENT * memory.length) * memory.size
        accepted = fallen | (size.isfinite() & (memory.length <= _SHORTEST))
        ratio = torch.where(memory.size.isfinite(), size / memory.size, 1)
        # as the residual fell, but no tighter at once than the last tolerance allows
        forcing = torch.maximum(0.9 * ratio**2, torch.where(memory.forcing**2 > 0.1, memory.forcing**2, 0))
        forcing = forcing.clamp(_TIGHTEST, _LOOSEST)
        way, direction = self._newton_step(memory.way, z, fz, residual, size, accepted, forcing)
        memory = NewtonMemory(
            point=torch.where(accepted, z, memory.point),
            direction=torch.where(accepted, direction, memory.direction),
            size=torch.where(accepted, size, memory.size),
            length=torch.where(accepted, 1, memory.length / 2),
            forcing=torch.where(accepted, forcing, memory.forcing),
            way=way,
        )
        return torch.addcmul(memory.point, memory.length, memory.direction), memory

    def _newton_step(
        self, way: int, z: Tensor, fz: Tensor, residual: Tensor, size: Tensor, accepted: Tensor, forcing: Tensor
    ) -> tuple[int, Tensor]:
        """The inner solve, of the rows accepted; the others' right-hand side is 0 and costs nothing."""
        problem, settings = self._problem, self._settings
        if problem is None or settings is None:
            raise RuntimeError("NewtonKrylov evaluates f within its steps: run it through solve, which binds it to f")
        scale = torch.linalg.vector_norm(fz, dim=1, keepdim=True)
        # solving to more than half of what the outer tolerance asks would be wasted
        enough = 0.5 * (settings.rtol * scale + settings.atol)
        tolerance = torch.maximum(forcing * size, enough.minimum(_LOOSEST * size))
        tried = 0
        if way < 0:
            way, tried = first_way(problem, z, fz, residual)
        # in units of its tolerance each row has the same one
        shift = torch.where(accepted & (size > 0), residual / tolerance, 0)
        linear = Linearised(problem, way, z, fz, shift)
        inner = Settings(GMRES(self.inner_steps), 0.0, 1.0, self.inner_steps + 1, compact=settings.compact)
        outcome = iterate(linear, torch.zeros_like(z), inner, image=shift)
        problem.spent = outcome.books.evaluations - 1 + tried
        return way, outcome.value * tolerance
