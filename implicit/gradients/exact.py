"""The exact gradient, by the implicit function theorem."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import ClassVar

import torch
from torch import Tensor

from solvers import GMRES, Anderson, Broyden, Captured, Eager, Loop, Picard, Settings, Solution, Solver
from solvers.iterate import iterate
from solvers.problem import Problem, prepare
from solvers.root_problem import LinearProblem

from .adjoint import AdjointGradient, Products
from .base import Gradient, Map, Report, require_quasi_newton, unit_batch
from .root import root


class Unconverged(Enum):
    """What a backward pass does with rows whose solve did not converge. It always warns."""

    KEEP = auto()
    """Use the best iterate."""
    PHANTOM = auto()
    """Use the Jacobian-free gradient of that row, `u = g`: not a solution, but bounded."""
    RAISE = auto()
    """Raise `solvers.ConvergenceError`."""


@dataclass(frozen=True)
class ImplicitGradient(AdjointGradient):
    """The exact gradient: for an incoming `g` solve `u = Jᵀu + g`, `J = ∂f/∂z` at `z*`, then pull `u` back through f.

    The default. It costs one tracked evaluation, and one vector–Jacobian product per backward step; memory does not
    grow with the forward solver's steps. It is as exact as the forward solve and `rtol` allow. The batch is scaled
    before solving, so the result does not depend on the loss's scale.

    Derivatives of any order, and the transforms of torch.func, solve such an equation for each derivative. They reach
    the arguments, the parameters of a module, and whatever else f captures; only the transforms refuse captured
    tensors. Source: Bai, Kolter, Koltun, "Deep Equilibrium Models", NeurIPS 2019.
    """

    solver: Solver | None = None
    """None: if the forward solver is Anderson, Broyden or Picard, `Anderson(period=3)`, which solves the adjoint
    equation where these solve the forward one, at little cost per product; else `GMRES()`, for J of any norm."""
    rtol: float = 1e-4
    """Tolerance relative to ‖u‖; for the root of a function, which may be in any unit, to ‖g‖."""
    max_steps: int = 100
    """Largest number of vector–Jacobian products."""
    unconverged: Unconverged = Unconverged.KEEP
    """What to do with rows that miss the tolerance."""

    loop: Loop | None = None
    """What runs its steps; None: `Captured` if the layer uses it and the solver supports it, else `Eager()`."""
    reuse: bool = False
    """Start from the inverse that the forward solver, `Anderson`, has learned, rather than from `g`."""

    _problem: ClassVar[type[Problem]] = Problem

    def __post_init__(self) -> None:
        _ = self._settings
        if not isinstance(self.reuse, bool):
            raise TypeError(f"reuse={self.reuse!r} must be True or False")
        if not isinstance(self.unconverged, Unconverged):
            allowed = ", ".join(map(str, Unconverged))
            raise TypeError(f"unconverged={self.unconverged!r} must be one of {allowed}")

    @property
    def _settings(self) -> Settings:
        return Settings(self._solver, self.rtol, 0.0, max_steps=self.max_steps, loop=self.loop or Eager())

    @property
    def _solver(self) -> Solver:
        return GMRES() if self.solver is None else self.solver

    def behind(self, settings: Settings) -> Gradient:
        solver, loop = self.solver, self.loop
        if solver is None and isinstance(settings.solver, (Anderson, Broyden, Picard)):
            solver = Anderson(period=3)
        if loop is None and isinstance(settings.loop, Captured) and (solver is None or solver.fixed_cost):
            loop = settings.loop
        return self if solver is self.solver and loop is self.loop else replace(self, solver=solver, loop=loop)

    def for_root(self) -> Gradient:
        policy = copy.copy(self)
        object.__setattr__(policy, "_problem", LinearProblem)  # no setting, and part of no repr
        return policy

    @property
    def exact(self) -> bool:
        return True

    @property
    def records(self) -> bool:
        return isinstance(self.loop, Captured)

    @property
    def whose_settings(self) -> str:
        return (
            f"For this solve, these are settings of gradient={type(self).__name__}(solver=…, rtol=…, max_steps=…), "
            "whose unconverged=… chooses how to treat such rows"
        )

    @property
    def remembers(self) -> bool:
        return self.reuse

    def check_solver(self, solver: Solver) -> None:
        if self.reuse:
            require_quasi_newton("ImplicitGradient(reuse=True)", solver)

    def root(self, f: Callable[..., Tensor], find: Callable[..., Tensor], report: Report, *tensors: Tensor) -> Tensor:
        return root(f, find, lambda product, shift: self.linear(product, shift, report, None), *tensors)

    def linear(self, product: Map, shift: Tensor, report: Report, inverse: Map | None) -> Tensor:
        return self._solved(product, shift, report, inverse, self._settings)

    def _solved(self, product: Map, shift: Tensor, report: Report, inverse: Map | None, settings: Settings) -> Tensor:
        unit, length = unit_batch(shift)
        start = torch.zeros_like(unit) if self._problem is LinearProblem else unit
        if inverse is not None:  # whose residual is small: tolerances are relative to u, and as tight as those to g
            start = inverse(unit)
            if self._problem is LinearProblem:
                least = min(settings.rtol, 10 * torch.finfo(unit.dtype).eps)  # one row may have a tiny share
                settings = replace(settings, rtol=max(settings.rtol * _share(unit, start), least))
        problem = prepare(lambda u: product(u) + unit, start, (), self._problem if inverse is None else Problem)
        if isinstance(product, Products) and product.pure is not None:
            products, forward = product, product.pure.problem
            problem.captures, problem.told = forward.captures, forward.told
            problem.name, problem.rounding = f"{forward.name}, backward", max(problem.rounding, forward.rounding)
            if problem.autocast is not None and forward.autocast is not None:
                problem.autocast = forward.autocast  # other threads, such as a GPU's, have a dtype of their own
            problem.source = lambda adjoint: products.source(unit, adjoint.autocast)
        known = None
        if isinstance(problem, LinearProblem):  # at zero nothing need be evaluated, and no step is lost
            settings = replace(settings, max_steps=settings.max_steps + 1)
            if not isinstance(settings.loop, Captured):
                first = unit.to(problem.layout.working_dtype)
                known = first, first
        with torch.no_grad():
            outcome = iterate(problem, start, settings, known)

        def solution() -> Solution[Tensor]:
            other = "GMRES with a longer restart" if isinstance(settings.solver, GMRES) else "GMRES()"
            found = outcome.solution(problem, settings.solver)
            with torch.no_grad():
                coupled = outcome.couples(problem, settings.measure)
            return replace(found, linear=True, alternatives=other, coupled=coupled)

        report(outcome.converged, solution)
        value = outcome.value
        if not outcome.converged and self.unconverged is not Unconverged.KEEP:
            found = solution()
            if self.unconverged is Unconverged.RAISE:
                found.check()
            value = torch.where(found.converged[:, None], value, unit)
        return (value * length).to(shift.dtype)


def _share(shift: Tensor, start: Tensor) -> float:
    """The least ‖g‖ / ‖u‖ of any row, at most 1, at an estimate of u."""
    shares = torch.linalg.vector_norm(shift, dim=1) / torch.linalg.vector_norm(start, dim=1)
    return float(torch.where((shares > 0) & (shares < 1), shares, 1).amin()) if len(shares) else 1.0
