"""How far a layer's gradient is from the exact one."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers import GMRES, Anderson, ConvergenceError, Eager, NewtonKrylov, State
from solvers.problem import prepare
from solvers.state import tree_map

from ..calls import Call
from ..equilibrium import Equilibrium
from ..gradients import Gradient, ImplicitGradient
from ..graph import refuse_hidden
from ..parametrized import one_weight
from ..recording import record
from .draws import normal
from .tables import Line, Table

EXACT = 1e-12
"""Relative tolerance of the forward and backward solve of the reference, in float64."""


@dataclass(frozen=True)
class GradientError(Line):
    """One gradient of a layer beside the exact one, over all its parameters and inputs together."""

    name: str
    """Of the gradient policy."""
    rtol: float
    """Relative tolerance of the forward solve."""
    cosine: float
    """Of the angle to the exact gradient: above 0 a small step against it lowers the loss."""
    relative_error: float
    """`‖g − g*‖ / ‖g*‖`."""
    evaluations: float
    """Of f forward and products of the backward solve, mean over the rows; steps that are tracked are no solves."""
    seconds: float
    """Forward and backward."""


def gradient_audit(
    layer: Equilibrium, *inputs: Any, rtol: float | None = None, z0: State | None = None
) -> GradientError:
    """The error of the layer's gradient policy against the exact gradient, of the loss `⟨v, z*⟩` with a random v.

    The exact one is that of the implicit function theorem, both solves to 1e-12 on a copy in float64. Gradients are
    compared as one long vector, of the parameters and the real inputs.

        gradient_audit(layer, x).cosine

    Args:
        layer: its cell and inputs must work in float64, too.
        inputs: as the layer takes them.
        rtol: of the forward solve; None: the layer's.
        z0: the warm start, as the layer takes it.

    Raises:
        ConvergenceError: the reference cannot be solved.
        TypeError: the cell fails in float64, the layer cannot be copied, or is a `Looped`.
        ValueError: there is no gradient, or it is zero.
    """
    _refuse_loop(layer)
    name = type(layer.gradient).__name__
    rtols = [layer.rtol if rtol is None else rtol]
    return compare_gradients(layer, *inputs, gradients={name: layer.gradient}, rtols=rtols, z0=z0)[0]


def compare_gradients(
    layer: Equilibrium,
    *inputs: Any,
    gradients: Mapping[str, Gradient],
    rtols: Sequence[float],
    z0: State | None = None,
) -> Table[GradientError]:
    """The errors of several policies at several tolerances of the forward solve, the policies one after the other.

    Tells which rtol a wanted accuracy of the gradient asks for, and what a cheaper policy gives away. Everything else
    as in `gradient_audit`.
    """
    _refuse_loop(layer)
    if not gradients or not rtols:
        raise ValueError("compare_gradients: name at least one policy in gradients, and one tolerance in rtols")
    with torch.inference_mode(False):
        layer, inputs, z0 = Call("", layer, inputs, z0).apart()[1:4]  # what an evaluation leaves behind stays out of it
        exact, _, _ = _gradient(exact_layer(layer, inputs, z0), *_doubled(layer, inputs, z0), strict=True)
        return _compared(layer, inputs, z0, exact, gradients, rtols)


def _refuse_loop(layer: Any) -> None:
    if not isinstance(layer, Equilibrium):
        raise TypeError(
            f"a {type(layer).__name__} has no equilibrium, whose exact gradient a policy could be compared with: pass "
            "an Equilibrium (of the same cell); how far truncation goes, tell loops with tracked=… and tracked=None"
        )


def exact_layer(layer: Equilibrium, inputs: tuple[Any, ...], z0: State | None) -> Equilibrium:
    """A copy in float64 that solves to 1e-12 forward and backward, by its own solver or one that can.

    Raises:
        ConvergenceError: none can.
        TypeError: the cell fails in float64.
    """
    exact = copy.deepcopy(layer).double()
    exact.gradient, exact.rtol, exact.atol = ImplicitGradient(GMRES(), rtol=EXACT, max_steps=1000), EXACT, 0.0
    exact.max_steps, exact.loop = 1000, Eager()
    doubled, start = _doubled(layer, inputs, z0)
    _refuse_hidden(exact, doubled, start)
    for exact.solver in (layer.solver, Anderson(), NewtonKrylov()):
        try:
            solution = exact.solve(*doubled, z0=start)
        except (RuntimeError, TypeError) as error:
            raise TypeError(
                f"the exact gradient is computed in float64, in which the cell fails ({error}): register its tensors "
                "as parameters or buffers, and make new ones like the state"
            ) from error
        if bool(solution.converged.all()):
            return exact
    raise ConvergenceError(
        f"the exact gradient cannot be found, solves to {EXACT:g} in float64 do not converge: {solution.summary()}"
    )


def _refuse_hidden(layer: Equilibrium, inputs: tuple[Any, ...], start: State) -> None:
    problem = prepare(layer.cell, start, inputs)
    with torch.enable_grad(), one_weight(layer.cell), suppress(RuntimeError, TypeError):  # a failure is told later
        point = problem.layout.flatten(start).detach().requires_grad_()
        refuse_hidden("the gradient", problem, point, problem(point))


def _doubled(layer: Equilibrium, inputs: tuple[Any, ...], z0: State | None) -> tuple[tuple[Any, ...], State]:
    doubled, start = as_double((inputs, layer.start(inputs, z0)))
    return doubled, start


def _compared(
    layer: Equilibrium,
    inputs: tuple[Any, ...],
    z0: State | None,
    exact: Tensor,
    gradients: Mapping[str, Gradient],
    rtols: Sequence[float],
) -> Table[GradientError]:
    if not bool(exact.any()):
        raise ValueError("the exact gradient is zero: there is nothing to compare with")
    errors = Table[GradientError]()
    for name, gradient in gradients.items():
        for rtol in rtols:
            layer.gradient, layer.rtol = gradient, rtol
            found, evaluations, seconds = _gradient(layer, inputs, z0, strict=False)
            cosine = torch.dot(found, exact) / (found.norm() * exact.norm()).clamp_min(torch.finfo(exact.dtype).tiny)
            error = (found - exact).norm() / exact.norm()
            errors.append(GradientError(name, rtol, cosine.item(), error.item(), evaluations, seconds))
    return errors


def as_double(values: Any) -> Any:
    """Nested tuples with every real tensor in float64."""
    return tree_map(lambda value: value.double() if _is_real(value) else value, values)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def differentiable(layer: Equilibrium, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Tensor]]:
    """The inputs as leaves that want a gradient where they are real, and all that wants one."""
    inputs = tuple(value.detach().requires_grad_() if _is_real(value) else value for value in inputs)
    every = (value for value in (*layer.parameters(), *inputs) if isinstance(value, Tensor))
    return inputs, [value for value in every if value.requires_grad]


def _gradient(
    layer: Equilibrium, inputs: tuple[Any, ...], z0: State | None, strict: bool
) -> tuple[Tensor, float, float]:
    """The gradient as one float64 vector, evaluations a row, seconds."""
    inputs, wanted = differentiable(layer, inputs)
    if not wanted:
        raise ValueError("the layer has neither parameters nor inputs that could have a gradient")
    start = time.perf_counter()
    with torch.enable_grad(), record() as log:
        z = layer(*inputs, z0=z0)
        parts = (z,) if isinstance(z, Tensor) else z
        loss = sum((_direction(part) * part).sum() for part in parts)
        found = torch.autograd.grad(loss, wanted, materialize_grads=True)  # type: ignore[arg-type]
    vector = torch.cat([part.detach().double().flatten() for part in found])
    seconds = time.perf_counter() - start
    solutions = [entry.solution for entry in (*log.forward, *log.backward)]
    if strict and not all(bool(solution.converged.all()) for solution in solutions):
        failed = next(solution for solution in solutions if not bool(solution.converged.all()))
        raise ConvergenceError(
            f"the exact gradient cannot be found, its solves to {EXACT:g} in float64 do not converge: "
            f"{failed.summary()}"
        )
    return vector, float(sum(solution.evaluations.double().mean() for solution in solutions)), seconds


def _direction(part: Tensor) -> Tensor:
    """The same random numbers whatever the dtype."""
    return normal(part.shape, part)
