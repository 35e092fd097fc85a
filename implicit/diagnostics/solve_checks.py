"""Checks of a layer's solves, one for each fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from solvers import Monotone, Status, solve
from solvers.precision import resolved
from solvers.status import past_floor

from ..coupling import REMEDY, as_one_row, causes
from ..equilibrium import Equilibrium
from ..few_rows import few_rows
from ..gradients import ImplicitGradient
from ..parametrized import one_weight
from .findings import Finding, LeftOutError, Look, name_rows
from .spectrum import spectral_radius
from .weights import blamed, smaller

EVALUATIONS = 8
"""Evaluations at one point, all of which must agree."""
SAVED = 0.7
"""The layer's history is called short if a longer one takes less than this share of its evaluations."""
USUAL = 8
"""Steps that a history holds by default, the least that the layer's is compared with."""


def stochastic(look: Look) -> Finding | None:
    images = look.images(EVALUATIONS)
    difference = (images - images[0]).abs().nan_to_num(0).max().item() if images.numel() else 0.0
    if difference == 0:
        return None
    return Finding(
        "stochastic cell",
        f"{EVALUATIONS} evaluations at the same point differ by up to {difference:.1e}",
        "A random map has no fixed point: use implicit.LockedDropout, or turn dropout off in the cell; replace "
        "torch.nn.utils.spectral_norm, which changes at each evaluation, by the parametrization, which changes once "
        "per solve",
    )


def coupled(look: Look) -> Finding | None:
    bad = look.coupling > 0
    if not bad.any():
        return None
    found = "; ".join(causes(look.layer.cell, look.inputs, look.problem.layout.batch))
    return Finding(
        "rows coupled through the batch",
        f"the image of {name_rows(bad)} changes when other rows do (by up to {look.coupling.max():.1e}, relative)"
        + (f"; {found}" if found else ""),
        REMEDY,
    )


def diverging(look: Look) -> Finding | None:
    bad = look.diverged
    if not bad.any():
        return None
    norms = blamed(look.layer, look.prefix)
    return Finding(
        "every row diverges" if bad.all() else "rows that diverge",
        f"{f'all {len(bad)} rows' if bad.all() else name_rows(bad)} grew out of bounds"
        + (f"; the spectral norms of the weights are {norms}" if norms else "; there are no weight matrices to blame"),
        f"To make it contract, {smaller(look.layer.cell)}. A cell that is affine in z may still have a fixed point, "
        "which GMRES() finds",
    )


def not_finite(look: Look) -> Finding | None:
    bad = look.solution.status == Status.NON_FINITE
    if not bad.any():
        return None
    return Finding(
        "rows that are not finite",
        f"the cell returned NaN or Inf in {name_rows(bad)}",
        "Check these rows of the inputs, and the weights; half precision may overflow: use bfloat16 or float32. In a "
        "backward pass such rows can make the gradient of every weight NaN, even if the loss leaves them out: take "
        "them out of the inputs, or keep the cell finite, as with clamp",
    )


def floor(look: Look) -> Finding | None:
    problem, bad = look.problem, look.floored
    if not bad.any():
        return None
    residual = float(look.solution.residual[bad].max())
    rounding = resolved(residual, problem.rounding)
    precision = problem.precision if rounding == problem.rounding else problem.layout.dtype
    return Finding(
        "the dtype's floor",
        f"{name_rows(bad)} stopped at a relative residual of {residual:.1e}, "
        f"above rtol={look.layer.rtol:g}; {precision} resolves {rounding:.1e}",
        "S" + past_floor(residual, rounding)[1:],
    )


def standing(look: Look) -> Finding | None:
    solution, bad = look.solution, look.standing
    if not bad.any():
        return None
    periods = sorted({tail.period for tail, row in zip(look.tails, bad.tolist(), strict=True) if row and tail.period})
    norms = blamed(look.layer, look.prefix)
    cycle = f", some with period {', '.join(map(str, periods))}" if periods else ""
    return Finding(
        "stalled or cycling rows",
        f"{name_rows(bad)} stopped improving at a relative residual of up to {solution.residual[bad].max():.1e}{cycle}"
        + (f"; the spectral norms of the weights are {norms}" if norms else ""),
        "Try shorter steps, as with Anderson(damping=0.3), which suit eigenvalues left of -1, NewtonKrylov(), or "
        f"another start. If none of them helps, there may be no fixed point: {smaller(look.layer.cell)}",
    )


def unfinished(look: Look) -> Finding | None:
    solution = look.solution
    bad = (solution.status == Status.MAX_STEPS) & ~look.floored & ~look.standing
    if not bad.any():
        return None
    return Finding(
        "steps ran out",
        f"{name_rows(bad)} kept improving until {look.layer.max_steps} steps ran out, at a relative residual of up to "
        f"{solution.residual[bad].max():.1e}",
        "Raise max_steps, loosen rtol, or try another solver; jacobian_penalty in the loss keeps solves short",
    )


def expanding(look: Look) -> Finding | None:
    layer, rows = look.layer, look.finite()
    if not len(rows):
        return None
    solves = isinstance(layer, Equilibrium)
    if solves and isinstance(layer.solver, Monotone) and isinstance(layer.gradient, ImplicitGradient):
        raise LeftOutError("Monotone and the exact gradient converge at any radius; spectral_radius measures it")
    with one_weight(layer.cell):
        if look.coupling.any():
            part, point = as_one_row(look.problem), look.value.reshape(1, -1)
        else:
            part, point = few_rows(look.problem, look.value, rows), look.value[rows]
        try:
            radius = spectral_radius(part.f, part.layout.unflatten(point.to(part.layout.dtype)), part.args)
        except ValueError:
            return None  # the check of the gradient reports what autograd cannot see
    above = radius > 1 + max(1e-6, 100 * look.problem.rounding)
    if not above.any():
        return None
    found = solves and bool(look.solution.converged[rows].all())
    where = f"the {'solutions' if found else 'last iterates'}, in {int(above.sum())} of {len(rows)} rows examined"
    if look.coupling.any():
        where = "the solution, with the batch taken as one row"
    return Finding(
        "spectral radius above 1",
        f"it is up to {radius[above].max():.4g} at {where}",
        "Undamped plain iteration diverges there, and so do undamped truncated gradients (Neumann, phantom): keep an "
        "exact gradient. If it rises in training, lower the learning rate, bound the cell's weights, or add "
        "jacobian_penalty to the loss, at 0.1 to begin with"
        if solves
        else "More steps do not converge, and the gradient grows with the number of tracked steps: if that is not "
        "wanted, track fewer, add jacobian_penalty to the loss or bound the cell's weights",
    )


def short(look: Look) -> Finding | None:
    memory = getattr(look.layer.solver, "memory", None)
    if not isinstance(memory, int) or bool(look.diverged.any()):  # a history may find what plain steps flee from
        return None
    more_memory = max(4 * memory, USUAL)
    longer: Any = replace(look.layer.solver, memory=more_memory)  # type: ignore[type-var]
    settings = replace(look.layer.settings, solver=longer)
    with torch.no_grad(), one_weight(look.layer.cell):
        other = solve(look.layer.cell, look.layer.start(look.inputs, look.z0), look.inputs, **settings.options())
    both = [solution.evaluations.double().mean().item() for solution in (look.solution, other)]
    able = ~look.floored  # where rounding decides, it is luck
    more = (other.converged & able).sum() > (look.solution.converged & able).sum()
    if not more and not both[1] < SAVED * both[0]:
        return None
    return Finding(
        "history too short",
        f"{int(other.converged.sum())} rows converge with memory={more_memory}, "
        f"{int(look.solution.converged.sum())} with memory={memory}"
        if more
        else f"memory={more_memory} takes {both[1]:.1f} evaluations a row where memory={memory} takes {both[0]:.1f}",
        f"Raise the solver's memory to {more_memory}",
    )
