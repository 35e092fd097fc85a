"""The implicit layer: `fixed_point` and `root` for functions, `Equilibrium` for modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from solvers import Loop, NewtonKrylov, Norm, PeacemanRachford, Settings, Solution, SolveOptions, Solver, State
from solvers.problem import Problem, prepare
from solvers.root_problem import RootProblem
from solvers.settings import takes_settings
from solvers.solve import root_settings, solve_prepared, uncompiled
from solvers.state import S

from .calls import note_call
from .differentiation import differentiable_solve
from .exported import FixedSteps, fixed_steps
from .gradients import Gradient, ImplicitGradient
from .gradients.base import check_gradient
from .layer import Layer, Z
from .logs import layer_name
from .parametrized import one_weight
from .sources import forward_source
from .split_cell import SplitCell, SplitMap
from .suitability import warn_of_unsuitable

_SETTINGS = [field.name for field in fields(Settings)]


@takes_settings()
@uncompiled
def fixed_point(
    f: Callable[..., S],
    z0: S,
    args: tuple[Any, ...] = (),
    *,
    gradient: Gradient = ImplicitGradient(),
    **options: Unpack[SolveOptions],
) -> S:
    """The solution of `z = f(z, *args)`, differentiable in `args` and in whatever tensors `f` captures.

    Prefer `Equilibrium` where `f` is a module. The arguments are those of `solvers.solve`; `gradient` chooses the
    backward pass and does not change the value. Rows that do not converge issue a `ConvergenceWarning`; use
    `solvers.solve(...).check()` to raise an error instead.
    """
    settings = Settings.of("fixed_point", options)
    check_gradient(gradient)
    gradient.check_solver(settings.solver)
    with one_weight(f):
        problem = prepare(f, z0, args, recordable=True)
        solution: S = differentiable_solve("fixed_point", f, problem, z0, gradient, settings)[-1]
        return solution


@takes_settings(solver=NewtonKrylov(), rtol=1e-6)
@uncompiled
def root(
    F: Callable[..., S],
    z0: S,
    args: tuple[Any, ...] = (),
    *,
    gradient: Gradient = ImplicitGradient(),
    **options: Unpack[SolveOptions],
) -> S:
    """The solution of `F(z, *args) = 0`, differentiable in `args` and in whatever tensors `F` captures.

    The arguments are those of `solvers.root`; `gradient` is as in `fixed_point`, for the map `z − u F(z)` with u, for
    each row, about `1 / ‖∂F/∂z‖`: no policy depends on the units of F and z but `ReversibleGradient`, which undoes the
    solver's own steps. The default solves `(∂F/∂z)ᵀ u = g` to `rtol·‖g‖`, one norm for all entries: where those of z
    have very different units, pass a tighter `rtol`, or small gradients lose their digits.
    Entries of a `torch.vmap` share one u: there F and z must have the same units in all of them.
    """
    settings = root_settings("root", options)
    check_gradient(gradient)
    gradient.check_solver(settings.solver)
    with one_weight(F):
        problem = prepare(F, z0, args, RootProblem, recordable=True)
        solution: S = differentiable_solve("root", F, problem, z0, gradient, settings)[-1]
        return solution


class Equilibrium(Layer[Z]):
    """A layer whose output is the equilibrium of its cell, `z* = cell(z*, *inputs)`.

    Its depth is the number of steps the solve takes; `gradient` chooses the backward pass. Gradients follow
    `torch.is_grad_enabled()`, in training and evaluation mode alike. Source: Bai, Kolter, Koltun, "Deep Equilibrium
    Models", NeurIPS 2019.

    Args:
        cell: module `(z, *inputs) → z`, (batch, …). No BatchNorm or dropout inside: rows must be independent and every
            evaluation the same. Weights under `torch.nn.utils.parametrizations` are computed once per solve.
        gradient: the backward policy.
        initial: `initial(*inputs)` makes the first iterate; None: zeros like the first input.
        **options: those of `solvers.Settings`; they become attributes of the layer and can be changed later.
            compact=None drops rows where the loop allows it.
    """

    solver: Solver
    rtol: float
    atol: float | None
    min_steps: int
    max_steps: int | Tensor
    norm: Norm
    compact: bool | None
    loop: Loop

    @takes_settings()
    def __init__(
        self,
        cell: nn.Module,
        *,
        gradient: Gradient = ImplicitGradient(),
        initial: Callable[..., Z] | None = None,
        **options: Unpack[SolveOptions],
    ) -> None:
        settings = Settings.of("Equilibrium", options)
        super().__init__(cell, initial)
        check_gradient(gradient)
        gradient.check_solver(settings.solver)
        self.gradient = gradient
        for name in _SETTINGS:
            setattr(self, name, getattr(settings, name))

    @property
    def settings(self) -> Settings:
        """The settings of its solves, from its current attributes."""
        return self._settings()

    def forward(self, *inputs: Any, z0: Z | None = None, max_steps: int | None = None, **keywords: Any) -> Z:
        """The equilibrium for `inputs`, from the warm start `z0` where one is given; `keywords` are inputs by name."""
        return self.iterates(*inputs, at=(), z0=z0, max_steps=max_steps, **keywords)[-1]

    if TYPE_CHECKING:  # a module's call is typed Any
        __call__ = forward

    @uncompiled
    def iterates(
        self, *inputs: Any, at: tuple[int, ...], z0: Z | None = None, max_steps: int | None = None, **keywords: Any
    ) -> tuple[Z, ...]:
        """The iterates after the numbers of steps in `at`, in that order, followed by the equilibrium.

        For fixed-point correction: loss terms on some iterates teach the cell to converge fast. Each iterate has the
        Jacobian-free gradient, that of one tracked evaluation at it. If a row had stopped earlier, the batch is solved
        again for max(at) steps whatever the residuals, beyond `max_steps` if need be, so that every iterate exists; a
        row at which the cell is no longer finite returns its best iterate before that.
        Source: Bai, Geng, Savani, Kolter, "Deep Equilibrium Optical Flow Estimation", CVPR 2022.

            *early, z = layer.iterates(x, at=(2, 4))
        """
        if not isinstance(at, tuple) or not all(isinstance(step, int) and step >= 0 for step in at):
            raise ValueError(f"at={at!r} must be a tuple of numbers of steps, each at least 0")
        inputs = self.positional(inputs, keywords)
        name = layer_name(self, self.title)
        note_call(self, inputs, z0, {} if max_steps is None else {"max_steps": max_steps})
        with one_weight(self.cell):
            problem, start, settings = self._problem(inputs, z0, max_steps)
            return differentiable_solve(name, self.cell, problem, start, self.gradient, settings, at)

    @uncompiled
    def solve(self, *inputs: Any, z0: Z | None = None, max_steps: int | None = None, **keywords: Any) -> Solution[Z]:
        """The `Solution` for `inputs`: status, residual and trace of every row, no graph."""
        inputs = self.positional(inputs, keywords)
        told = warn_of_unsuitable(self.cell)
        with one_weight(self.cell), torch.no_grad():
            problem, start, settings = self._problem(inputs, z0, max_steps)
            problem.told = told
            return solve_prepared(problem, start, settings)

    def exported(self, *inputs: Any, steps: int | None = None, **keywords: Any) -> FixedSteps:
        """The layer with a fixed number of steps, for `torch.export`, ONNX and `torch.jit.trace`.

        Args:
            *inputs: representative ones. On these the result must meet the layer's tolerance, or a
                `solvers.ConvergenceError` is raised.
            steps: of the solver; None: as many as the slowest of these rows needs.
        """
        return fixed_steps(self, self.positional(inputs, keywords), steps)

    def _problem(
        self, inputs: tuple[Any, ...], z0: State | None, max_steps: int | None
    ) -> tuple[Problem, State, Settings]:
        """The problem, the start and the settings; of a split cell, the map left once its linear part is formed."""
        chosen: dict[str, Any] = {} if max_steps is None else {"max_steps": max_steps}
        if isinstance(max_steps, int):  # of this call: a smaller budget leaves fewer steps to insist on
            chosen["min_steps"] = min(self.min_steps, max_steps)
        if not (isinstance(self.cell, SplitCell) and isinstance(self.solver, PeacemanRachford)):
            start = self.start(inputs, z0)
            problem = prepare(self.cell, start, inputs, advice=lambda: self.advice(start, z0 is not None))
            problem.captures, problem.source = self._captures, forward_source
            if self.compact is None and isinstance(self.loop, Loop):  # `Settings` refuses anything else
                chosen["compact"] = not self.loop.fixed_shapes
            return problem, start, self._settings(**chosen)
        parts = self.cell.split(*inputs)
        start = torch.zeros_like(parts.shift) if z0 is None and self.initial is None else self.start(inputs, z0)
        # all rows share W, and the remaining map costs little
        problem = prepare(SplitMap(self.cell), start, (parts.shift, parts.weight))
        return problem, start, self._settings(**chosen, compact=False)

    def _settings(self, **chosen: Any) -> Settings:
        """The settings from its attributes, except for those chosen here."""
        return Settings(**{name: chosen[name] if name in chosen else getattr(self, name) for name in _SETTINGS})

    def extra_repr(self) -> str:
        return (
            f"solver={self.solver}, gradient={type(self.gradient).__name__}, rtol={self.rtol}, atol={self.atol}, "
            f"max_steps={self.max_steps}"
        )
