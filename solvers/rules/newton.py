"""Newton's method with Krylov inner solves."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..checks import check_positive_integer
from ..iterate import iterate
from ..problem import Problem
from ..settings import Settings
from .first_way import first_way
from .gmres import GMRES
from .jacobian_products import WAYS, NewtonEquation, double_reverse_mode
from .rule import Solver

_SUFFICIENT = 1e-4
_SHORTEST = 2.0**-10
_LOOSEST, _TIGHTEST = 0.1, 1e-4
_REFUSED = 0.5
"""Length whose refusal makes a row roam: take full steps whatever the residual, until it is below that at `point`."""
_ROAMS = 14
"""Steps after which a roaming row returns to `point` and to shorter steps; well within the patience of the loop."""
_SHORT = 2.0**-6
"""Length from which on steps lead nowhere, as near a minimum of the residual."""


class NewtonMemory(NamedTuple):
    point: Tensor  # (rows, dim): from which the last step was taken
    direction: Tensor  # (rows, dim): of the last step
    size: Tensor  # (rows, 1): ‖f(z) − z‖ at `point`
    length: Tensor  # (rows, 1): of the last step, in (0, 1]
    forcing: Tensor  # (rows, 1): relative tolerance of the inner solve at `point`
    roamed: Tensor  # (rows, 1): steps since the row left `point`; −1 when it came back without success
    slope: Tensor  # (rows, 1): about ‖g′‖, if the unit of g is unknown; else 1
    way: int  # position in WAYS of how Jacobian products are made; −1 before it is known


@dataclass(frozen=True)
class NewtonKrylov(Solver):
    """Inexact Newton on `g(z) = f(z) − z`: `z⁺ = z + λ δ` with `(I − J) δ = g(z)` solved by GMRES, matrix-free.

    Products with `J = ∂f/∂z` are exact: by double reverse mode, which keeps the graph of one evaluation of f, or else
    by forward mode. If f cannot be differentiated, they are finite differences. For a piecewise smooth f (ReLU) the
    step is the semismooth Newton step. The inner tolerance tightens as the residual falls (Eisenstat, Walker), and λ is
    halved until the residual falls. Where half a step is refused, a row first takes some full steps that may raise the
    residual (a watchdog), since minima of the residual need not be roots.

    Prefer it for many digits, for stiff problems, and where f expands (see also `Monotone`). `evaluations` counts f and
    Jacobian products alike. Each step waits for its inner solve, so do not use it for tiny states on a GPU. Source:
    Knoll, Keyes, J. Comput. Phys. 193 (2004); Eisenstat, Walker, SIAM J. Sci. Comput. 17 (1996); Chamberlain, Powell,
    Lemarechal, Pedersen, Math. Prog. Study 16 (1982).
    """

    inner_steps: int = 30
    """Largest number of products per step; two (batch, inner_steps, dim) buffers, allocated as they fill."""

    backtracks: ClassVar[bool] = True
    fixed_cost: ClassVar[bool] = False
    alternatives: ClassVar[str] = "another start, more inner_steps, or Monotone where z − f(z) is monotone"

    _problem: ClassVar[Problem | None] = None
    _tolerances: ClassVar[tuple[float, float]] = (0.0, 0.0)

    def __post_init__(self) -> None:
        check_positive_integer(self, "inner_steps")

    def bind(self, problem: Problem, rtol: float, atol: float) -> NewtonKrylov:
        bound = copy.copy(self)
        object.__setattr__(bound, "_problem", problem)
        object.__setattr__(bound, "_tolerances", (rtol, atol))
        return bound

    def init(self, z: Tensor) -> NewtonMemory:
        ones = z.new_ones(len(z), 1)
        return NewtonMemory(z, torch.zeros_like(z), torch.inf * ones, ones, _LOOSEST * ones, 0 * ones, ones, way=-1)

    def step(self, memory: NewtonMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, NewtonMemory]:
        size = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
        finite, roamed, length = size.isfinite(), memory.roamed, memory.length
        fallen = size <= (1 - _SUFFICIENT * length) * memory.size
        accepted = fallen | (finite & (length <= _SHORTEST) & (roamed <= 0))
        away = ~accepted & (roamed > 0)
        leaving = ~accepted & (roamed == 0) & (length <= _REFUSED)
        roaming = finite & (leaving | (away & (roamed < _ROAMS)))
        ratio = torch.where(memory.size.isfinite(), size / memory.size, 1)
        # tightens as the residual fell, but no faster than the last tolerance allows
        forcing = torch.maximum(0.9 * ratio**2, torch.where(memory.forcing**2 > 0.1, memory.forcing**2, 0))
        # a step that had to be short may have been too inexact
        forcing = torch.where(length < 1, forcing.minimum(memory.forcing / 2), forcing)
        forcing = forcing.clamp(_TIGHTEST, _LOOSEST)
        # a row that came back may roam again once a full step succeeds or short ones lead nowhere
        settled = accepted & ((length == 1) | (length <= _SHORT) | (roamed > 0))
        returned = accepted & (roamed < 0)  # with the slope of where it had roamed
        slope = torch.where(returned, _steepness(memory.size, memory.direction, memory.slope), memory.slope)
        memory = memory._replace(slope=slope)
        direction, slope, way = self._newton_step(memory, z, fz, residual, size, accepted | roaming, forcing)
        length = torch.where(away, length, length / 2)
        memory = NewtonMemory(
            point=torch.where(accepted, z, memory.point),
            direction=torch.where(accepted, direction, memory.direction),
            size=torch.where(accepted, size, memory.size),
            length=torch.where(accepted, 1, length),
            forcing=torch.where(accepted, forcing, memory.forcing),
            roamed=torch.where(settled, 0, torch.where(roaming, roamed + 1, torch.where(away, -1, roamed))),
            slope=slope,
            way=way,
        )
        back = torch.addcmul(memory.point, memory.length, memory.direction)
        return torch.where(roaming, z + direction, back), memory

    def _newton_step(
        self,
        memory: NewtonMemory,
        z: Tensor,
        fz: Tensor,
        residual: Tensor,
        size: Tensor,
        going: Tensor,
        forcing: Tensor,
    ) -> tuple[Tensor, Tensor, int]:
        """The direction, and the next memory's `slope` and `way`.

        The inner solve is for the rows that continue from z; the others' right-hand side is 0, which costs nothing.
        """
        problem, (rtol, atol) = self._problem, self._tolerances
        if problem is None:
            raise RuntimeError("NewtonKrylov evaluates f within its steps: run it through solve, which binds it to f")
        scale = torch.linalg.vector_norm(fz, dim=1, keepdim=True)
        # solving more tightly than to half the outer tolerance would be wasted
        enough = 0.5 * (rtol * scale + atol)
        tolerance = torch.maximum(forcing * size, enough.minimum(_LOOSEST * size))
        way, slope, tried = memory.way, memory.slope, 0
        if way < 0:
            apart = problem.apart()
            g, at_z = (apart.residual, residual) if problem.relative_to_start else (apart, fz)
            way, tried, found = first_way(problem, g, z, at_z, residual)
            slope = found if problem.relative_to_start else slope
        # in units of its own tolerance, each row has the same tolerance, 1
        shift = torch.where(going & (size > 0), residual / tolerance, 0)
        equation = NewtonEquation(problem, way, z, residual, shift, slope.reciprocal())
        compact = problem.compact and WAYS[way] is not double_reverse_mode  # dropping rows would evaluate f again
        inner = Settings(GMRES(self.inner_steps), rtol=0.0, atol=1.0, max_steps=self.inner_steps + 1, compact=compact)
        outcome = iterate(equation, torch.zeros_like(z), inner, start=(shift, shift), checked=True)
        problem.spent = outcome.rows.steps + outcome.rows.spent - 1 + tried
        direction = outcome.value * (tolerance / slope)
        if problem.relative_to_start:
            slope = _steepness(size, direction, slope)
        return direction, slope, way


def _steepness(size: Tensor, direction: Tensor, otherwise: Tensor) -> Tensor:
    """About ‖g′‖ where a Newton step began, since `g′ direction ≈ −g`."""
    found = size / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    return torch.where(found.isfinite() & (found > 0), found, otherwise)
