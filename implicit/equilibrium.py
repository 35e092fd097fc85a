"""The implicit layer: `fixed_point` for functions, `Equilibrium` for modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from solvers import Anderson, Solution, Solver, State, solve
from solvers.compilation import uncompiled
from solvers.problem import Settings

from .calls import note_call
from .differentiation import differentiable_solve
from .gradients import Gradient, ImplicitGradient
from .parametrized import one_weight
from .recording import layer_name
from .suitability import warn_of_unsuitable


@uncompiled
def fixed_point(
    f: Callable[..., State],
    z0: State,
    args: tuple[Any, ...] = (),
    *,
    solver: Solver = Anderson(),
    gradient: Gradient = ImplicitGradient(),
    rtol: float = 1e-4,
    atol: float = 1e-8,
    max_steps: int = 100,
    compact: bool = False,
    check_every: int = 1,
    compile: bool = False,
) -> State:
    """The solution of `z = f(z, *args)`, differentiable in `args` and in whatever tensors `f` captures.

    Prefer `Equilibrium` where `f` is a module. The arguments are those of `solvers.solve`; `gradient` chooses the
    backward pass and leaves the value alone. Rows that do not converge issue a `ConvergenceWarning`; use
    `solvers.solve(...).check()` to raise instead.
    """
    _check_gradient(gradient, solver)
    with one_weight(f):
        settings = Settings(solver, rtol, atol, max_steps, compact, check_every, compile)
        return differentiable_solve("fixed_point", f, z0, args, gradient, settings)[-1]


class Equilibrium(nn.Module):
    """A layer whose output is the equilibrium of its cell, `z* = cell(z*, *inputs)`.

    Its depth is whatever the solve takes, its backward that of `gradient`. Gradients follow
    `torch.is_grad_enabled()`, in training and evaluation mode alike. Source: Bai, Kolter, Koltun, "Deep Equilibrium
    Models", NeurIPS 2019.

    Args:
        cell: module `(z, *inputs) → z`, (batch, …). No BatchNorm or dropout inside: rows must be independent and every
            evaluation the same. Weights under `torch.nn.utils.parametrizations` are computed once a solve.
        solver, rtol, atol, max_steps: as in `solvers.solve`.
        gradient: the backward policy.
        initial: `initial(*inputs)` makes the first iterate; None: zeros like the first input.
        compact: drop rows that have converged from further evaluations (see `solvers.solve`); every tensor among the
            inputs then has the batch in dim 0.
        check_every, compile: as in `solvers.solve`; `compile` needs compact=False.
    """

    def __init__(
        self,
        cell: nn.Module,
        *,
        solver: Solver = Anderson(),
        gradient: Gradient = ImplicitGradient(),
        rtol: float = 1e-4,
        atol: float = 1e-8,
        max_steps: int = 100,
        initial: Callable[..., State] | None = None,
        compact: bool = True,
        check_every: int = 1,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(cell, nn.Module):
            raise TypeError(f"cell is a {type(cell).__name__}: pass an nn.Module, or use fixed_point for a function")
        _check_gradient(gradient, solver)
        self.cell, self.gradient, self.initial = cell, gradient, initial
        self.solver, self.rtol, self.atol, self.max_steps = solver, rtol, atol, max_steps
        # a module's own `compile` is a method
        self.compact, self.check_every, self.compile_solve = compact, check_every, compile
        self._settings(None)

    def forward(self, *inputs: Any, z0: State | None = None, max_steps: int | None = None) -> State:
        """The equilibrium for `inputs`, from the warm start `z0` where one is given."""
        return self.iterates(*inputs, at=(), z0=z0, max_steps=max_steps)[-1]

    @uncompiled
    def iterates(
        self, *inputs: Any, at: tuple[int, ...], z0: State | None = None, max_steps: int | None = None
    ) -> tuple[State, ...]:
        """The iterates after the numbers of steps in `at`, in that order, and at last the equilibrium.

        For fixed-point correction: loss terms on some iterates teach the cell to converge fast. Each iterate has the
        Jacobian-free gradient, that of one tracked evaluation at it; a row that had stopped before has its solution.
        Source: Bai, Geng, Savani, Kolter, "Deep Equilibrium Optical Flow Estimation", CVPR 2022.

            *early, z = layer.iterates(x, at=(2, 4))
        """
        if not isinstance(at, tuple) or not all(isinstance(step, int) and step >= 0 for step in at):
            raise ValueError(f"at={at!r} must be a tuple of numbers of steps, each at least 0")
        settings, start = self._settings(max_steps), self._start(inputs, z0)
        name = layer_name(self, self.title)
        note_call(self, inputs, z0, max_steps)
        with one_weight(self.cell):
            return differentiable_solve(name, self.cell, start, inputs, self.gradient, settings, at)

    @uncompiled
    def solve(self, *inputs: Any, z0: State | None = None, max_steps: int | None = None) -> Solution:
        """The `Solution` for `inputs`: status, residual and trace of every row, no graph."""
        settings = self._settings(max_steps)
        warn_of_unsuitable(self.cell)
        with one_weight(self.cell), torch.no_grad():
            return solve(self.cell, self._start(inputs, z0), inputs, **vars(settings))

    @property
    def title(self) -> str:
        """Its name in records where it has no place in a model."""
        return f"Equilibrium({type(self.cell).__name__})"

    def _settings(self, max_steps: int | None) -> Settings:
        steps = self.max_steps if max_steps is None else max_steps
        return Settings(self.solver, self.rtol, self.atol, steps, self.compact, self.check_every, self.compile_solve)

    def _start(self, inputs: tuple[Any, ...], z0: State | None) -> State:
        if z0 is not None:
            return z0
        if self.initial is not None:
            return self.initial(*inputs)
        if not inputs or not isinstance(inputs[0], Tensor):
            raise TypeError("the default start is zeros like the first input, which is no tensor: pass initial= or z0=")
        return torch.zeros_like(inputs[0])

    def extra_repr(self) -> str:
        return (
            f"solver={self.solver}, gradient={type(self.gradient).__name__}, rtol={self.rtol}, atol={self.atol}, "
            f"max_steps={self.max_steps}"
        )


def _check_gradient(gradient: Any, solver: Any) -> None:
    if not isinstance(gradient, Gradient):
        raise TypeError(f"gradient={gradient!r} is not a Gradient: pass an object such as ImplicitGradient()")
    gradient.check_solver(solver)
