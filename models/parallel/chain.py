"""A recurrence as one equation for all its states, whose linearised equations are solved by scans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit import ImplicitGradient
from implicit.gradients.base import Evaluation, Map, Report
from solvers import Settings, Solver
from solvers.rules.rule import PATIENCE
from solvers.state import Layout, State, tree_map

from .newton import Newton, scan
from .repeats import Repeats

TIMES = 64
"""Number of steps whose Jacobians are formed at once where they are applied one after the other."""


class Chain:
    """`h_t = cell(x_t, h_{t−1})` for all t, with flat states, (batch, time, width).

    Args:
        cell: `(x_t, h) → h`.
        layout: of h.
        x: (batch, time, …).
        first: h_0, (batch, width).
        repeats: lets the cell draw and update the same at every evaluation.
    """

    def __init__(
        self, cell: Callable[[Tensor, Any], Any], layout: Layout, x: Tensor, first: Tensor, repeats: Repeats
    ) -> None:
        self.cell, self.layout, self.x, self.first, self.repeats = cell, layout, x, first, repeats

    def swept(self, states: Tensor, x: Tensor, first: Tensor) -> Tensor:
        """All steps at once, each from the guess of the state before it."""
        return self._steps(x, _before(states, first))

    def jacobians(self, newton: Newton, states: Tensor) -> Tensor:
        """The Jacobian of each step at the state before it, (batch, time, width, width), or as `newton` follows it."""
        return newton.jacobians(lambda before: self._steps(self.x, before), _before(states, self.first))[1]

    def structured(self, states: Tensor) -> State:
        """Like h_0, each part (batch, time, …)."""
        batch, time, _ = states.shape
        return tree_map(lambda part: part.unflatten(0, (batch, time)), self.layout.unflatten(states.flatten(0, 1)))

    @torch.no_grad()
    def growth(self, states: Tensor) -> Tensor:
        """(batch,) growth of a disturbance of h_0, in nepers per step."""
        before = _before(states, self.first)
        direction = torch.ones_like(self.first) / self.first.shape[1] ** 0.5
        total = torch.zeros(len(before), dtype=torch.float64, device=before.device)
        for x, some in zip(self.x.split(TIMES, dim=1), before.split(TIMES, dim=1), strict=True):
            jacobians = Newton().jacobians(lambda before, x=x: self._steps(x, before, True), some)[1]  # type: ignore[misc]
            for jacobian in jacobians.unbind(1):
                direction = (jacobian @ direction[..., None])[..., 0]
                length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
                direction = direction / length.clamp(min=torch.finfo(length.dtype).tiny)
                total += length[:, 0].double().log()
        return total / states.shape[1]

    def _steps(self, x: Tensor, before: Tensor, anew: bool = False) -> Tensor:
        flat = before.flatten(0, 1)
        with self.repeats.same(anew=anew):
            moved = self.cell(x.flatten(0, 1), self.layout.unflatten(flat))
        return self.layout.flatten(self.layout.check(moved, len(flat))).to(before.dtype).view(before.shape)


@dataclass(frozen=True, eq=False)
class ChainNewton(Solver):
    """Newton's method for the chain: `δ_t = J_t δ_{t−1} + r_t`, r the residual, by a scan."""

    chain: Chain
    newton: Newton
    exact_after: int | None = None

    may_be_caught: ClassVar[bool] = False
    fixed_cost: ClassVar[bool] = False
    budget: ClassVar[str] = "max_sweeps"
    alternatives: ClassVar[str] = "newton=Newton(damping=0.5)"

    def patience(self, dim: int) -> int:
        return max(PATIENCE, self.exact_after or 0)

    def init(self, z: Tensor) -> tuple[()]:
        return ()

    def step(self, memory: tuple[()], z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, tuple[()]]:
        rest = self._by_time(residual)
        return self._moved(fz, rest, _solved(self.chain.jacobians(self.newton, self._by_time(z)), rest)), memory

    def _by_time(self, flat: Tensor) -> Tensor:
        return flat.view(len(flat), self.chain.x.shape[1], self.chain.first.shape[1])

    def _moved(self, fz: Tensor, rest: Tensor, delta: Tensor) -> Tensor:
        """`z + δ`, in a form in which exact states stay exact, and each sweep makes one more exact."""
        plain = self._by_time(fz)
        moved = plain + (delta - rest)
        return torch.where(moved.isfinite(), moved, plain).view_as(fz)


@dataclass(frozen=True, eq=False)
class ChainAdjoint(ChainNewton):
    """The same for `u = Jᵀu + g`: `δ_t = J_{t+1}ᵀ δ_{t+1} + r_t`."""

    jacobians: Tensor | None = None  # at the solution

    def step(self, memory: tuple[()], z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, tuple[()]]:
        assert self.jacobians is not None
        rest = self._by_time(residual)
        transposed = self.jacobians if self.newton.follows_diagonals else self.jacobians.mT
        # backwards in time; the first entry, in place of J beyond the last step, multiplies 0
        delta = _solved(transposed.flip(1).roll(1, dims=1), rest.flip(1)).flip(1)
        return self._moved(fz, rest, delta), memory


@dataclass(frozen=True, eq=False)
class ChainGradient(ImplicitGradient):
    """The exact gradient, its equation solved by scans; derivatives beyond the first use `solver`."""

    chain: Chain | None = None
    newton: Newton = Newton()

    @property
    def whose_settings(self) -> str:
        return f"This is the adjoint recurrence, solved to {self.rtol:g} in at most one sweep more than there are steps"

    def inverse(self, at: Evaluation) -> Map | None:
        return _At(at.point.detach())

    def linear(self, product: Map, shift: Tensor, report: Report, inverse: Map | None) -> Tensor:
        if not isinstance(inverse, _At):
            return super().linear(product, shift, report, inverse)
        chain = self.chain
        assert chain is not None
        states = inverse.point.view(len(inverse.point), chain.x.shape[1], chain.first.shape[1])
        jacobians = chain.jacobians(self.newton, states)
        sweeps = ChainAdjoint(chain, self.newton, states.shape[1], jacobians)
        return self._solved(product, shift, report, None, Settings(sweeps, self.rtol, 0.0, max_steps=self.max_steps))


class _At:
    """The solution; as an `inverse` it is the identity, so the adjoint solve starts at `u = g`."""

    def __init__(self, point: Tensor) -> None:
        self.point = point

    def __call__(self, v: Tensor) -> Tensor:
        return v


def _before(states: Tensor, first: Tensor) -> Tensor:
    """The states one step earlier."""
    return torch.cat((first[:, None].to(states.dtype), states[:, :-1]), dim=1)


def _solved(jacobians: Tensor, rest: Tensor) -> Tensor:
    """All δ_t of `δ_t = J_t δ_{t−1} + r_t`, δ_0 = 0, (batch, time, width)."""
    matrices, vectors = jacobians.movedim(1, 0), rest.movedim(1, 0)
    if matrices.ndim == vectors.ndim:
        return scan(matrices, vectors, torch.zeros_like(vectors[0]), torch.mul)[1:].movedim(0, 1)
    return scan(matrices, vectors[..., None], torch.zeros_like(vectors[0])[..., None])[1:, ..., 0].movedim(0, 1)
