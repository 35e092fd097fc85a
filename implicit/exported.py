"""A solve with a fixed number of steps, for programs that are exported or traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from solvers import ConvergenceError, Picard, Solver, State, solve
from solvers.problem import Problem
from solvers.state import Layout

if TYPE_CHECKING:
    from .equilibrium import Equilibrium


class FixedSteps(nn.Module):
    """What an `Equilibrium` computes, with a fixed number of its solver's steps and no check of the residuals.

    `Equilibrium.exported` makes it, for `torch.export`, ONNX, `torch.jit.trace` and `torch.compile(fullgraph=True)`. It
    shares the layer's cell and is for inference: no gradient is recorded. ONNX supports Picard and Anderson,
    `torch.jit.trace` only Picard.

    Args:
        cell: the layer's.
        start: `start(inputs)` is the first iterate.
        solver: with a fixed cost per step, such as Picard, Anderson or Broyden.
        steps: of the solver, each of which evaluates the cell once.
    """

    def __init__(
        self, cell: nn.Module, start: Callable[[tuple[Any, ...], None], State], solver: Solver, steps: int
    ) -> None:
        super().__init__()
        self.cell, self.start, self.solver, self.steps = cell, start, solver, steps

    @torch.no_grad()
    def forward(self, *inputs: Any) -> State:
        """The state after the last step, like the layer's.

        In `torch.export` the inputs are one tuple: `dynamic_shapes=(({0: Dim.AUTO},),)` for one input with any batch.
        """
        if torch.jit._trace.is_tracing() and not isinstance(self.solver, Picard):
            raise RuntimeError(
                f"torch.jit.trace cannot replay {type(self.solver).__name__}, which writes into its memory: use "
                "torch.export, or Picard()"
            )
        start = self.start(inputs, None)
        problem = Problem(self.cell, inputs, Layout(start))
        solver = self.solver.bind(problem, 0.0, 0.0)
        z = problem.layout.flatten(start)
        memory = solver.init(z)
        for _ in range(self.steps):
            image = problem(z)
            z, memory = solver.step(memory, z, image, image - z)
            z = problem.layout.representable(z)
        return problem.layout.unflatten(z)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, solver={self.solver}"


def fixed_steps(layer: Equilibrium[Any], inputs: tuple[Any, ...], steps: int | None) -> FixedSteps:
    """`layer.exported(*inputs, steps=steps)`."""
    settings = layer.settings
    if not settings.solver.fixed_cost:
        raise TypeError(
            f"{type(settings.solver).__name__} has no fixed cost per step: set the layer's solver to Picard(), "
            "Anderson() or Broyden() first"
        )
    if not Layout(layer.start(inputs, None)).batch:
        raise ValueError("the inputs have no rows from which to count the steps: pass representative inputs")
    if steps is None:
        steps = int(layer.solve(*inputs).check().steps.max())
    elif not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps={steps!r} must be an integer of at least 1")
    form = FixedSteps(layer.cell, layer.start, settings.solver, steps).train(layer.training)
    once = replace(settings, min_steps=0, max_steps=1)
    found = solve(layer.cell, form(*inputs), inputs, **once.options())
    if not bool(found.converged.all()):
        raise ConvergenceError(
            f"{steps} steps of {settings.solver} leave a relative residual of {found.residual.max().item():.1e}, which "
            f"does not meet rtol={settings.rtol:g}: pass more steps, or set another solver"
        )
    return form
