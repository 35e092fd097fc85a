"""What is wrong with a layer, in words."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from solvers import ConvergenceError, State, Status, solve
from solvers.problem import select

from ..calls import Call, detached, first_of_each, layer_calls, random_state_kept
from ..equilibrium import Equilibrium
from ..gradients import ImplicitGradient
from ..parametrized import one_weight
from ..recording import record
from .audit import as_double, compare_gradients, differentiable
from .findings import Finding, Look, name_rows
from .rates import tails
from .spectrum import spectral_radius
from .tables import Table

LOOSE = 0.05
"""Relative error of the gradient, from the forward solve alone, that is worth a word."""
SAVED = 0.7
"""Share of the evaluations with a longer history below which the layer's is called short."""


def diagnose(model: nn.Module, *inputs: Any, z0: State | None = None) -> Table[Finding]:
    """Look for what keeps a layer from converging, or its gradient from being right; an empty list: nothing found.

    In this order: a stochastic cell (whatever else were found would mean nothing, so it is found alone), rows coupled
    through the batch, rows that are not finite, the dtype's floor, stalled or cycling rows, a spectral radius above 1,
    a backward solve that does not converge, a tolerance too loose for the gradient, a history too short. Costs some
    solves, among them one in float64, on this batch, of a copy: the model is left as it was, the random state too.

        for finding in implicit.diagnostics.diagnose(layer, x):
            print(finding)

    Args:
        model: an `Equilibrium`, or a model with some inside, each of which is looked at in its first call; in the mode,
            training or evaluation, that is to be looked at. Cells must work in float64, too.
        inputs: as the model takes them.
        z0: the warm start, of an `Equilibrium`.

    Raises:
        ValueError: the model has called no `Equilibrium`.
    """
    with warnings.catch_warnings(), random_state_kept(model):
        warnings.simplefilter("ignore")  # what did not converge is a finding
        calls = _calls(copy.deepcopy(model), detached(inputs), z0)
        return Table(replace(finding, layer=call.name) for call in calls for finding in _findings(Look(call)))


def _calls(model: nn.Module, inputs: tuple[Any, ...], z0: State | None) -> list[Call]:
    """The first call of each layer."""
    if isinstance(model, Equilibrium):
        return [Call("", model, inputs, z0)]
    if z0 is not None:
        raise TypeError(f"z0 is the warm start of an Equilibrium, and {type(model).__name__} is none")
    with torch.no_grad(), layer_calls(model) as calls:
        model(*inputs)
    if not calls:
        raise ValueError(f"{type(model).__name__} has called no Equilibrium on these inputs: there is nothing to find")
    return first_of_each(calls)


def _findings(look: Look) -> list[Finding]:
    stochastic = _stochastic(look)
    return [stochastic] if stochastic else [finding for check in CHECKS for finding in [check(look)] if finding]


def _stochastic(look: Look) -> Finding | None:
    with one_weight(look.layer.cell):  # as in a solve
        first, second = look.image(), look.image()
    difference = (first - second).abs().nan_to_num(0).max().item() if first.numel() else 0.0
    if difference == 0:
        return None
    return Finding(
        "stochastic cell",
        f"two evaluations at the same point differ by up to {difference:.1e}",
        "A random map has no fixed point: use implicit.LockedDropout, or turn dropout off inside the cell",
    )


def _coupled(look: Look) -> Finding | None:
    rows = look.finite()
    if not look.by_row or look.problem.layout.batch < 2 or not len(rows):
        return None
    whole = look.image()[rows]
    with torch.no_grad(), one_weight(look.layer.cell):
        # twice: batch normalisation refuses one row
        pairs = [row.expand(2) for row in rows]
        alone = torch.stack([look.problem.take(pair)(look.value[pair])[0] for pair in pairs])
    change = torch.linalg.vector_norm(whole - alone, dim=1) / (1 + torch.linalg.vector_norm(whole, dim=1))
    if not change.max() > 1000 * look.problem.rounding:
        return None
    return Finding(
        "rows coupled through the batch",
        f"the cell gives a row alone another image than in its batch (relative change {change.max():.1e})",
        "Each row is solved on its own: use LayerNorm or GroupNorm in place of BatchNorm, or put it outside the cell",
    )


def _not_finite(look: Look) -> Finding | None:
    bad = look.solution.status == Status.NON_FINITE
    if not bad.any():
        return None
    return Finding(
        "rows that are not finite",
        f"the cell returned NaN or Inf in {name_rows(bad)}",
        "Check these rows of the inputs, and the weights; half precision may overflow: use bfloat16 or float32",
    )


def _floor(look: Look) -> Finding | None:
    solution, rounding, bad = look.solution, look.problem.rounding, look.floored
    if not bad.any():
        return None
    return Finding(
        "the dtype's floor",
        f"{name_rows(bad)} stopped at a relative residual of {solution.residual[bad].max():.1e}, "
        f"above rtol={look.layer.rtol:g}; {look.problem.layout.dtype} resolves {rounding:.1e}",
        f"Set rtol to {100 * rounding:.0e} or more, or use a wider dtype",
    )


def _standing(look: Look) -> Finding | None:
    solution = look.solution
    ends = tails(solution)
    far = ~solution.converged & ~look.floored & solution.residual.isfinite()
    stalled = torch.tensor([bool(tail.stalled or tail.period) for tail in ends], dtype=torch.bool, device=far.device)
    failed = (solution.status == Status.STALLED) | (solution.status == Status.DIVERGED) | stalled
    bad = far & failed
    if not bad.any():
        return None
    periods = sorted({tail.period for tail, row in zip(ends, bad.tolist(), strict=True) if row and tail.period})
    cycle = f", some with period {', '.join(map(str, periods))}" if periods else ""
    return Finding(
        "stalled or cycling rows",
        f"{name_rows(bad)} do not get below a relative residual of {solution.residual[bad].max():.1e}{cycle}",
        "They may have no fixed point: make the cell contractive (normalise its weights, add jacobian_penalty to the "
        "loss), or try another solver or damping",
    )


def _expanding(look: Look) -> Finding | None:
    rows = look.finite()
    if not look.by_row or not len(rows):
        return None
    point = look.problem.layout.unflatten(look.value[rows])
    try:
        radius = spectral_radius(look.layer.cell, point, select(look.inputs, rows))
    except ConvergenceError:
        return None
    if not (radius > 1).any():
        return None
    return Finding(
        "spectral radius above 1",
        f"it is up to {radius[~radius.isnan()].max():.2f} at the solutions, in {int((radius > 1).sum())} of the "
        f"{len(rows)} rows looked at",
        "Plain iteration and truncated gradients (Neumann, phantom) diverge there: keep an exact gradient, and add "
        "jacobian_penalty to the loss or normalise the cell's weights",
    )


def _backward(look: Look) -> Finding | None:
    inputs, wanted = differentiable(look.layer, look.inputs)
    if not wanted:
        return None
    with torch.enable_grad(), record() as log:
        flat = look.problem.layout.flatten(look.layer(*inputs, z0=look.z0))
        direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)).to(flat)
        with suppress(ConvergenceError):  # of Unconverged.RAISE; the log has it
            torch.autograd.grad(flat, wanted, direction, allow_unused=True)
    good = look.solution.converged
    failed = [entry.solution for entry in log.backward if bool((~entry.solution.converged & good).any())]
    if not failed:
        return None
    bad = ~failed[0].converged & good
    return Finding(
        "backward solve not converged",
        f"the adjoint solve of {name_rows(bad)} stopped at a relative residual of {failed[0].residual[bad].max():.1e}",
        "Raise max_steps of ImplicitGradient, give it another solver, or choose with unconverged= what becomes of them",
    )


def _loose(look: Look) -> Finding | None:
    if not bool(look.solution.converged.all()):
        return None
    # in float64, so that rounding is not laid to the tolerance
    layer, (inputs, z0) = copy.deepcopy(look.layer).double(), as_double((look.inputs, look.z0))
    exact = {"exact": ImplicitGradient(rtol=1e-10, max_steps=1000)}
    try:
        error = compare_gradients(layer, *inputs, gradients=exact, rtols=[look.layer.rtol], z0=z0)[0].relative_error
    except (ConvergenceError, ValueError):
        return None  # without a reference nothing can be said
    if error <= LOOSE:
        return None
    return Finding(
        "tolerance too loose for the gradient",
        f"at rtol={look.layer.rtol:g} the iterate alone puts the exact gradient off by {error:.0%}",
        f"Lower rtol to {look.layer.rtol * LOOSE / error / 5:.0e} or so; compare_gradients shows error against rtol",
    )


def _short(look: Look) -> Finding | None:
    memory = getattr(look.layer.solver, "memory", None)
    if not isinstance(memory, int):
        return None
    longer: Any = replace(look.layer.solver, memory=4 * memory)  # type: ignore[type-var]
    settings = replace(look.layer._settings(None), solver=longer)
    with torch.no_grad(), one_weight(look.layer.cell):
        other = solve(look.layer.cell, look.layer._start(look.inputs, look.z0), look.inputs, **vars(settings))
    both = [solution.evaluations.double().mean().item() for solution in (look.solution, other)]
    more = other.converged.sum() > look.solution.converged.sum()
    if not more and not both[1] < SAVED * both[0]:
        return None
    return Finding(
        "history too short",
        f"memory={4 * memory} takes {both[1]:.1f} evaluations a row where memory={memory} takes {both[0]:.1f}, and "
        f"{int(other.converged.sum())} rows converge where {int(look.solution.converged.sum())} do",
        f"Raise the solver's memory to {4 * memory}",
    )


CHECKS: tuple[Callable[[Look], Finding | None], ...] = (
    _coupled,
    _not_finite,
    _floor,
    _standing,
    _expanding,
    _backward,
    _loose,
    _short,
)
