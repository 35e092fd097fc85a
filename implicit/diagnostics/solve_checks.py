"""What may be wrong with the solves of a layer, a check a fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from solvers import ConvergenceError, Monotone, Status, solve
from solvers.problem import select

from ..equilibrium import Equilibrium
from ..gradients import ImplicitGradient
from ..parametrized import one_weight
from .findings import Finding, Look, name_rows
from .spectrum import spectral_radius

EVALUATIONS = 8
"""At one point, of which none may differ."""
SAVED = 0.7
"""Share of the evaluations with a longer history below which the layer's is called short."""
USUAL = 8
"""Steps that a history holds by default: shorter ones are compared with that."""


def stochastic(look: Look) -> Finding | None:
    images = look.images(EVALUATIONS)
    difference = (images - images[0]).abs().nan_to_num(0).max().item() if images.numel() else 0.0
    if difference == 0:
        return None
    return Finding(
        "stochastic cell",
        f"{EVALUATIONS} evaluations at the same point differ by up to {difference:.1e}",
        "A random map has no fixed point: use implicit.LockedDropout, or turn dropout off inside the cell",
    )


def coupled(look: Look) -> Finding | None:
    rows = look.finite()
    if look.problem.layout.batch < 2 or not len(rows):
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


def not_finite(look: Look) -> Finding | None:
    bad = look.solution.status == Status.NON_FINITE
    if not bad.any():
        return None
    return Finding(
        "rows that are not finite",
        f"the cell returned NaN or Inf in {name_rows(bad)}",
        "Check these rows of the inputs, and the weights; half precision may overflow: use bfloat16 or float32",
    )


def floor(look: Look) -> Finding | None:
    solution, rounding, bad = look.solution, look.problem.rounding, look.floored
    if not bad.any():
        return None
    return Finding(
        "the dtype's floor",
        f"{name_rows(bad)} stopped at a relative residual of {solution.residual[bad].max():.1e}, "
        f"above rtol={look.layer.rtol:g}; {look.problem.layout.dtype} resolves {rounding:.1e}",
        f"Set rtol to {100 * rounding:.0e} or more, or use a wider dtype",
    )


def standing(look: Look) -> Finding | None:
    solution, bad = look.solution, look.standing
    if not bad.any():
        return None
    periods = sorted({tail.period for tail, row in zip(look.tails, bad.tolist(), strict=True) if row and tail.period})
    cycle = f", some with period {', '.join(map(str, periods))}" if periods else ""
    return Finding(
        "stalled or cycling rows",
        f"{name_rows(bad)} do not get below a relative residual of {solution.residual[bad].max():.1e}{cycle}",
        "They may have no fixed point: make the cell contractive (normalise its weights, add jacobian_penalty to the "
        "loss), or try another solver or damping",
    )


def unfinished(look: Look) -> Finding | None:
    solution = look.solution
    bad = (solution.status == Status.MAX_STEPS) & ~look.floored & ~look.standing
    if not bad.any():
        return None
    return Finding(
        "steps ran out",
        f"{name_rows(bad)} were still improving after {look.layer.max_steps} steps, at a relative residual of up to "
        f"{solution.residual[bad].max():.1e}",
        "Raise max_steps, loosen rtol, or try another solver; jacobian_penalty in the loss keeps solves short",
    )


def expanding(look: Look) -> Finding | None:
    layer, rows = look.layer, look.finite()
    solves = isinstance(layer, Equilibrium)
    made_for_it = solves and isinstance(layer.solver, Monotone) and isinstance(layer.gradient, ImplicitGradient)
    if made_for_it or not len(rows):
        return None
    point = look.problem.layout.unflatten(look.value[rows])
    try:
        with one_weight(layer.cell):
            radius = spectral_radius(look.f, point, select(look.own, rows))
    except (ConvergenceError, ValueError):
        return None  # what autograd cannot see is told by the look at the gradient
    above = radius > 1 + max(1e-6, 100 * look.problem.rounding)
    if not above.any():
        return None
    return Finding(
        "spectral radius above 1",
        f"it is up to {radius[above].max():.4g} at the {'solutions' if solves else 'last iterates'}, in "
        f"{int(above.sum())} of {len(rows)} rows looked at",
        "Plain iteration and truncated gradients (Neumann, phantom) diverge there: keep an exact gradient, and add "
        "jacobian_penalty to the loss or normalise the cell's weights"
        if solves
        else "More steps do not settle, and the gradient grows with those that are tracked: where that is not wanted, "
        "track fewer, add jacobian_penalty to the loss or normalise the cell's weights",
    )


def short(look: Look) -> Finding | None:
    memory = getattr(look.layer.solver, "memory", None)
    if not isinstance(memory, int):
        return None
    more_memory = max(4 * memory, USUAL)
    longer: Any = replace(look.layer.solver, memory=more_memory)  # type: ignore[type-var]
    settings = replace(look.layer.settings, solver=longer)
    with torch.no_grad(), one_weight(look.layer.cell):
        other = solve(look.layer.cell, look.layer.start(look.inputs, look.z0), look.inputs, **settings.options())
    both = [solution.evaluations.double().mean().item() for solution in (look.solution, other)]
    more = other.converged.sum() > look.solution.converged.sum()
    if not more and not both[1] < SAVED * both[0]:
        return None
    return Finding(
        "history too short",
        f"memory={more_memory} takes {both[1]:.1f} evaluations a row where memory={memory} takes {both[0]:.1f}, and "
        f"{int(other.converged.sum())} rows converge where {int(look.solution.converged.sum())} do",
        f"Raise the solver's memory to {more_memory}",
    )
