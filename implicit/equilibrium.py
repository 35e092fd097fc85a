"""The implicit layer: `fixed_point` for functions, `Equilibrium` for modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from solvers import Anderson, Solution, Solver, State
from solvers.loop import agrees, check_settings, iterate, prepare, resolve, solve

from .gradients import Gradient, ImplicitGradient
from .recording import current_log, report


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
) -> State:
    """The solution of `z = f(z, *args)`, differentiable in `args` and in whatever tensors `f` captures.

    Prefer `Equilibrium` where `f` is a module. The arguments are those of `solvers.solve`; `gradient` chooses the
    backward pass and leaves the value alone. Rows that do not converge issue a `ConvergenceWarning`; use
    `solvers.solve(...).check()` to raise instead.
    """
    _check_gradient(gradient)
    return _differentiable_solve("fixed_point", f, z0, args, solver, gradient, rtol, atol, max_steps, compact)


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
    ) -> None:
        super().__init__()
        if not isinstance(cell, nn.Module):
            raise TypeError(f"cell is a {type(cell).__name__}: pass an nn.Module, or use fixed_point for a function")
        check_settings(solver, rtol, atol, max_steps)
        _check_gradient(gradient)
        self.cell = cell
        self.solver, self.gradient, self.initial, self.compact = solver, gradient, initial, compact
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps

    def forward(self, *inputs: Any, z0: State | None = None, max_steps: int | None = None) -> State:
        """The equilibrium for `inputs`, from the warm start `z0` where one is given."""
        steps = self.max_steps if max_steps is None else max_steps
        start = self._start(inputs, z0)
        with _one_weight(self.cell):
            return _differentiable_solve(
                self, self.cell, start, inputs, self.solver, self.gradient, self.rtol, self.atol, steps, self.compact
            )

    def solve(self, *inputs: Any, z0: State | None = None, max_steps: int | None = None) -> Solution:
        """The `Solution` for `inputs`: status, residual and trace of every row, no graph."""
        steps = self.max_steps if max_steps is None else max_steps
        with torch.no_grad(), _one_weight(self.cell):
            return solve(
                self.cell,
                self._start(inputs, z0),
                inputs,
                solver=self.solver,
                rtol=self.rtol,
                atol=self.atol,
                max_steps=steps,
                compact=self.compact,
            )

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
    owner: str | Equilibrium,
    f: Callable[..., State],
    z0: State,
    args: tuple[Any, ...],
    solver: Solver,
    gradient: Gradient,
    rtol: float,
    atol: float,
    max_steps: int,
    compact: bool,
) -> State:
    layout, problem = prepare(f, z0, args, solver, rtol, atol, max_steps, compact)
    settings = (solver, rtol, atol, max_steps)
    log = current_log()
    if isinstance(owner, str):
        name = owner
    else:
        name = (log.names if log else {}).get(id(owner), f"Equilibrium({type(owner.cell).__name__})")
    start = layout.flatten(z0)
    tracked = torch.is_grad_enabled()
    with torch.no_grad():
        outcome = iterate(problem, start.detach(), *settings, compact)
    # the tracked evaluation doubles as the check that dropping rows was sound
    image = point = None
    if tracked or outcome.dropped:
        point = gradient.point(outcome.value) if tracked else outcome.value
        image = problem(point)
        if outcome.dropped and not agrees(outcome, image.detach(), rtol, atol):
            with torch.no_grad():
                outcome = resolve(problem, start.detach(), *settings)
            point = gradient.point(outcome.value) if tracked else outcome.value
            image = problem(point)
    if log is not None or outcome.books["status"].any():
        report(log, name, "forward", outcome.solution(layout, z0))
    if point is None or image is None or not tracked or not _depends_on_more(image, start, args, f):
        solution = outcome.solution(layout, z0)
        return solution.value
    return layout.unflatten(gradient.attach(problem, start, point, image, partial(report, log, name, "backward")))


def _depends_on_more(image: Tensor, start: Tensor, args: tuple[Any, ...], f: Callable[..., State]) -> bool:
    """Whether a gradient has anywhere to go: to an argument, a parameter, or a tensor that f captures."""
    if start.requires_grad or any(isinstance(a, Tensor) and a.requires_grad for a in args):
        return True
    if isinstance(f, nn.Module) and any(p.requires_grad for p in f.parameters()):
        return True
    seen, queue = set(), [image.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("_AnchorBackward"):
            continue
        if hasattr(node, "variable"):
            return True
        queue.extend(following for following, _ in node.next_functions)
    return False


@contextmanager
def _one_weight(cell: nn.Module) -> Iterator[None]:
    """One solve sees one weight: parametrized tensors are computed once, tracked, and reused.

    Spectral normalisation would otherwise move its buffers at every evaluation in training mode. The tensors are
    computed before the solve turns gradients off, so that the tracked evaluation still reaches the parameters.
    """
    parametrized = [module for module in cell.modules() if parametrize.is_parametrized(module)]
    if not parametrized:
        yield
        return
    with parametrize.cached():
        for module in parametrized:
            for name in module.parametrizations:  # type: ignore[union-attr]
                getattr(module, name)
        yield


def _check_gradient(gradient: Any) -> None:
    if not isinstance(gradient, Gradient):
        raise TypeError(f"gradient={gradient!r} is not a Gradient: pass an object such as ImplicitGradient()")
