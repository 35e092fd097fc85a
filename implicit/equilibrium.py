"""The implicit layer: `fixed_point` for functions, `Equilibrium` for modules."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from solvers import Anderson, Solution, Solver, State, solve
from solvers.coupling import agrees, resolve, verified
from solvers.divergence import diagnosed
from solvers.problem import Problem, Settings, prepare

from .explicit import Explicit
from .gradients import Gradient, ImplicitGradient
from .gradients.base import Evaluation
from .gradients.root import followed, transformed
from .graph import leaves
from .parametrized import one_weight
from .recording import Log, current_logs, layer_name, report


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
    with one_weight(f) if isinstance(f, nn.Module) else nullcontext():
        settings = Settings(solver, rtol, atol, max_steps, compact, check_every, compile)
        return _differentiable_solve(None, f, z0, args, gradient, settings)


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
        settings, start = self._settings(max_steps), self._start(inputs, z0)
        with one_weight(self.cell):
            return _differentiable_solve(self, self.cell, start, inputs, self.gradient, settings)

    def solve(self, *inputs: Any, z0: State | None = None, max_steps: int | None = None) -> Solution:
        """The `Solution` for `inputs`: status, residual and trace of every row, no graph."""
        settings = self._settings(max_steps)
        with one_weight(self.cell), torch.no_grad():
            return solve(self.cell, self._start(inputs, z0), inputs, **vars(settings))

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


def _differentiable_solve(
    layer: Equilibrium | None,
    f: Callable[..., State],
    z0: State,
    args: tuple[Any, ...],
    gradient: Gradient,
    settings: Settings,
) -> State:
    problem = prepare(f, z0, args, settings.compact)
    layout = problem.layout
    logs = current_logs()
    name = "fixed_point" if layer is None else layer_name(layer, f"Equilibrium({type(layer.cell).__name__})")
    if transformed():
        return layout.unflatten(_transformed_solve(problem, z0, gradient, settings, logs, name))
    tracked = torch.is_grad_enabled()
    with torch.no_grad():
        outcome = diagnosed(problem, layout.flatten(z0), settings, remember=tracked and gradient.remembers)
    start = layout.flatten(z0)  # afterwards, since a solve may have widened the working dtype
    # the tracked evaluation doubles as the check that dropping rows was sound
    point = image = outcome.value
    if tracked or outcome.dropped:
        point = gradient.point(outcome.value) if tracked else outcome.value
        image = problem(point)
        if outcome.dropped and not agrees(outcome, image.detach(), problem.rounding, settings):
            with torch.no_grad():
                outcome = resolve(problem, start.detach(), settings, outcome, remember=gradient.remembers)
            point = gradient.point(outcome.value) if tracked else outcome.value
            image = problem(point)
    if logs or outcome.books.status.any():
        report(logs, name, "forward", outcome.solution(layout))
    if not tracked or not _depends_on_more(image, point, start, args, f):
        return layout.unflatten(outcome.value.clone())
    at = Evaluation(
        problem,
        start,
        point,
        image,
        partial(Explicit, problem),
        partial(report, logs, name, "backward"),
        settings.solver,
        outcome,
    )
    return layout.unflatten(gradient.attach(at))


def _transformed_solve(
    problem: Problem, z0: State, gradient: Gradient, settings: Settings, logs: tuple[Log, ...], name: str
) -> Tensor:
    """The same under a transform of torch.func or forward mode: everything that these follow is handed to `root`."""
    layout, explicit = problem.layout, Explicit(problem)
    start = layout.flatten(z0)
    tensors = (start, *explicit.tensors)
    with torch.enable_grad():
        blank = (torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in tensors)
        if followed(explicit(*blank)):
            raise RuntimeError(
                "f captures a tensor that a transform of torch.func, or autograd around it, follows: pass it through "
                "args, or make f an nn.Module that has it as a parameter"
            )

    def find(start: Tensor, *tensors: Tensor) -> Tensor:
        outcome = verified(explicit.at(*tensors), start, settings)
        report(logs, name, "forward", outcome.solution(layout))
        return outcome.value.clone()

    def f(z: Tensor, start: Tensor, *tensors: Tensor) -> Tensor:
        return explicit(z, *tensors)

    return gradient.root(f, find, partial(report, logs, name, "backward"), *tensors)


def _depends_on_more(
    image: Tensor, point: Tensor, start: Tensor, args: tuple[Any, ...], f: Callable[..., State]
) -> bool:
    """Whether a gradient has anywhere to go: to an argument, a parameter, or a tensor that f captures."""
    if start.requires_grad or any(isinstance(a, Tensor) and a.requires_grad for a in args):
        return True
    if isinstance(f, nn.Module) and any(p.requires_grad for p in f.parameters()):
        return True
    return any(True for _ in leaves(image, point))


def _check_gradient(gradient: Any, solver: Any) -> None:
    if not isinstance(gradient, Gradient):
        raise TypeError(f"gradient={gradient!r} is not a Gradient: pass an object such as ImplicitGradient()")
    gradient.check_solver(solver)
