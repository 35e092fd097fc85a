"""How far a layer's gradient is from the exact one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solvers import ConvergenceError, State
from solvers.state import tree_leaves, tree_map

from ..calls import Call
from ..compiled import uncompiled_cells
from ..copies import untouched
from ..draws import normal
from ..equilibrium import Equilibrium
from ..gradients import Gradient
from ..gradients.base import check_gradient
from ..logs import record
from .reference import EXACT, doubled, exact_layer, is_real
from .tables import Line, Table

REPEATS = 3
"""Timed passes."""


@dataclass(frozen=True)
class GradientError(Line):
    """One gradient of a layer beside the exact one, over all its parameters and inputs together."""

    name: str
    """Name of the gradient policy."""
    rtol: float
    """Relative tolerance of the forward solve."""
    cosine: float
    """Cosine with the exact gradient: above 0, a small step against this gradient lowers the loss."""
    relative_error: float
    """`‖g − g*‖ / ‖g*‖`."""
    evaluations: float
    """Evaluations of f in the forward solve, plus products of a backward solve to a tolerance, mean over the rows. What
    a policy does a fixed number of times does not count: tracked steps, terms of a series."""
    seconds: float
    """Time forward and backward, the median of several passes after a warm-up; NaN: none was timed."""


def gradient_audit(
    layer: Equilibrium[Any],
    *inputs: Any,
    rtol: float | None = None,
    z0: State | None = None,
    repeats: int = REPEATS,
    **keywords: Any,
) -> GradientError:
    """The error of the layer's gradient against the exact one, for the loss `⟨v, z*⟩` with a random v.

    The exact gradient comes from the implicit function theorem, with both solves to 1e-12 on a copy in float64.
    Gradients are compared as one long vector, over the parameters and the real inputs.

        gradient_audit(layer, x).cosine

    Args:
        layer: its cell and inputs must work in float64, too.
        inputs, keywords: as the layer takes them, by position and by name.
        rtol: of the forward solve; None: the layer's.
        z0: the warm start, as the layer takes it.
        repeats: timed passes after a warm-up, whose median is taken; 0: none.

    Raises:
        ConvergenceError: the reference cannot be solved.
        TypeError: the cell fails in float64, or the layer cannot be copied.
        ValueError: there is no gradient, or it is zero.
    """
    _refuse_loop(layer)
    name = type(layer.gradient).__name__
    rtols = [layer.rtol if rtol is None else rtol]
    gradients = {name: layer.gradient}
    found = compare_gradients(layer, *inputs, gradients=gradients, rtols=rtols, z0=z0, repeats=repeats, **keywords)
    return found[0]


def compare_gradients(
    layer: Equilibrium[Any],
    *inputs: Any,
    gradients: Mapping[str, Gradient],
    rtols: Sequence[float],
    z0: State | None = None,
    repeats: int = REPEATS,
    **keywords: Any,
) -> Table[GradientError]:
    """The errors of several policies at several tolerances of the forward solve, ordered by policy.

    Shows which rtol a given accuracy of the gradient needs, and what a cheaper policy costs in accuracy. Everything
    else is as in `gradient_audit`.
    """
    _refuse_loop(layer)
    if not gradients or not rtols:
        raise ValueError("compare_gradients: name at least one policy in gradients, and one tolerance in rtols")
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 0:
        raise ValueError(f"compare_gradients: repeats={repeats!r} must be an integer of at least 0")
    with torch.inference_mode(False), untouched(layer), uncompiled_cells():
        inputs = layer.positional(inputs, keywords)
        layer, inputs, z0 = Call("", layer, inputs, z0).apart()[1:4]  # a copy, so that evaluations leave no trace in it
        exact, _ = _gradient(exact_layer(layer, inputs, z0), *doubled(layer, inputs, z0), strict=True)
        return _compared(layer, inputs, z0, exact, gradients, rtols, repeats)


def _refuse_loop(layer: Any) -> None:
    if not isinstance(layer, Equilibrium):
        parts = layer.named_modules() if isinstance(layer, nn.Module) else ()
        inside = next((name for name, part in parts if isinstance(part, Equilibrium)), None)
        advice = (
            f"pass its layer {inside} and that layer's inputs" if inside else "pass an Equilibrium of the same cell"
        )
        raise TypeError(f"a {type(layer).__name__} has no exact gradient with which to compare: {advice}")


def _compared(
    layer: Equilibrium[Any],
    inputs: tuple[Any, ...],
    z0: State | None,
    exact: Tensor,
    gradients: Mapping[str, Gradient],
    rtols: Sequence[float],
    repeats: int,
) -> Table[GradientError]:
    if not bool(exact.any()):
        raise ValueError("the exact gradient is zero: there is nothing to compare with")
    errors = Table[GradientError]()
    for name, gradient in gradients.items():
        check_gradient(gradient)
        for rtol in rtols:
            layer.gradient, layer.rtol = gradient, rtol
            found, evaluations = _gradient(layer, inputs, z0, strict=False)
            seconds = _median_seconds(lambda: _gradient(layer, inputs, z0, strict=False), repeats)
            cosine = torch.dot(found, exact) / (found.norm() * exact.norm()).clamp_min(torch.finfo(exact.dtype).tiny)
            error = (found - exact).norm() / exact.norm()
            errors.append(GradientError(name, rtol, cosine.item(), error.item(), evaluations, seconds))
    return errors


def _median_seconds(run: Callable[[], tuple[Tensor, float]], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()[0][:1].tolist()  # waits for the device
        times.append(time.perf_counter() - start)
    return statistics.median(times) if times else math.nan


def differentiable(layer: Equilibrium[Any], inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Tensor]]:
    """The inputs, real ones as leaves that require gradients, and every input and parameter that requires one."""
    inputs = tree_map(lambda value: value.detach().requires_grad_() if is_real(value) else value, inputs)
    every = (value for value in (*layer.parameters(), *tree_leaves(inputs)) if isinstance(value, Tensor))
    return inputs, [value for value in every if value.requires_grad]


def _gradient(layer: Equilibrium[Any], inputs: tuple[Any, ...], z0: State | None, strict: bool) -> tuple[Tensor, float]:
    """The gradient as one float64 vector, and the evaluations per row."""
    inputs, wanted = differentiable(layer, inputs)
    if not wanted:
        raise ValueError("none of the layer's parameters and inputs can have a gradient")
    with torch.enable_grad(), record() as log:
        loss = sum((_direction(part) * part).sum() for part in tree_leaves(layer(*inputs, z0=z0)))
        found = torch.autograd.grad(loss, wanted, materialize_grads=True)  # type: ignore[arg-type]
    vector = torch.cat([part.detach().double().flatten() for part in found])
    solutions = [entry.solution for entry in (*log.forward, *log.backward)]
    if strict and not all(bool(solution.converged.all()) for solution in solutions):
        failed = next(solution for solution in solutions if not bool(solution.converged.all()))
        raise ConvergenceError(
            f"the exact gradient cannot be computed, because its solves to rtol={EXACT:g} in float64 do not converge: "
            f"{failed.summary()}"
        )
    return vector, float(sum(solution.evaluations.double().mean() for solution in solutions))


def _direction(part: Tensor) -> Tensor:
    """The same random numbers whatever the dtype."""
    return normal(part.shape, part)
