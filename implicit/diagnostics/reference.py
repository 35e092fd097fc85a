"""The exact gradient of a layer: the float64 copy that computes it, and its inputs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from solvers import GMRES, Anderson, ConvergenceError, Eager, NewtonKrylov, Shared, State, Status
from solvers.problem import prepare
from solvers.state import tree_map

from ..copies import copied
from ..coupling import coupling
from ..draws import normal
from ..equilibrium import Equilibrium
from ..gradients import ImplicitGradient
from ..graph import refuse_hidden
from ..parametrized import one_weight
from .joint import JointEquilibrium

EXACT = 1e-12
"""Relative tolerance of the forward and backward solve of the reference, in float64."""


def exact_layer(layer: Equilibrium[Any], inputs: tuple[Any, ...], z0: State | None) -> Equilibrium[Any]:
    """A copy in float64 that solves to 1e-12 forward and backward, by its own solver or another that converges.

    Raises:
        ConvergenceError: no solver converges.
        TypeError: the cell fails in float64.
    """
    exact = copied(layer).double()
    exact.gradient, exact.rtol, exact.atol = ImplicitGradient(GMRES(), rtol=EXACT, max_steps=1000), EXACT, 0.0
    exact.max_steps, exact.loop = 1000, Eager()
    wide, start = doubled(layer, inputs, z0)
    if _looked_at(exact, wide, start):
        exact = JointEquilibrium(exact, start)
    for exact.solver in (layer.solver, Anderson(), NewtonKrylov()):
        try:
            solution = exact.solve(*wide, z0=start)
        except (RuntimeError, TypeError) as error:
            raise TypeError(
                f"the exact gradient is computed in float64, in which the cell fails ({error}): register its tensors "
                "as parameters or buffers, and make new ones like the state"
            ) from error
        if bool(solution.converged.all()):
            return exact
    failed = solution.status[~solution.converged].tolist()
    statuses = ", ".join(sorted({Status(code).name for code in failed}))
    raise ConvergenceError(
        f"the exact gradient cannot be computed: solves to rtol={EXACT:g} in float64 do not converge, whatever the "
        f"solver, in {len(failed)} of {len(solution.status)} rows ({statuses}), which may have no fixed point"
    )


def _looked_at(layer: Equilibrium[Any], inputs: tuple[Any, ...], start: State) -> bool:
    """Whether rows depend on each other; `ValueError` where the cell hides its derivative."""
    problem = prepare(layer.cell, start, inputs)
    with torch.enable_grad(), one_weight(layer.cell), suppress(RuntimeError, TypeError):  # failures are reported later
        point = problem.layout.flatten(start).detach().requires_grad_()
        refuse_hidden("the gradient", problem, point, problem(point))
        point = point.detach()
        return bool(coupling(problem, point + normal(point.shape, point)).any())
    return False


def doubled(layer: Equilibrium[Any], inputs: tuple[Any, ...], z0: State | None) -> tuple[tuple[Any, ...], State]:
    """Inputs and first iterate in float64."""
    wide, start = as_double((inputs, layer.start(inputs, z0)))
    return wide, start


def as_double(values: Any) -> Any:
    """Nested containers with every real tensor in float64."""
    return tree_map(_as_double, values)


def _as_double(value: Any) -> Any:
    if isinstance(value, Shared):
        return Shared(as_double(value.value))
    return value.double() if is_real(value) else value


def is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype.is_floating_point
