"""How far an iterate is from the equilibrium."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from solvers import GMRES, State, solve
from solvers.problem import prepare
from solvers.rules.first_way import first_way
from solvers.rules.jacobian_products import WAYS, spread_at

from ..calls import detached
from ..parametrized import one_weight
from .tables import summary


@dataclass(frozen=True)
class ErrorBound:
    """The distance of each row to its equilibrium."""

    value: Tensor = field(repr=False)
    """(batch,) float64, in the units of z; NaN: no estimate for this row."""
    certified: bool
    """True: proven from the given monotonicity. False: an estimate."""
    reason: str
    """How it was obtained."""

    def to_dict(self) -> dict[str, list[Any]]:
        """One line per row: `pandas.DataFrame(bound.to_dict())`."""
        rows = len(self.value)
        return {"distance": self.value.tolist(), "certified": [self.certified] * rows, "reason": [self.reason] * rows}

    def _repr_html_(self) -> str:
        kind = "certified" if self.certified else "estimate"
        return summary({"distance to z*": self.value.tolist()}) + f"<p>{kind}: {escape(self.reason)}</p>"


def error_bound(
    f: Callable[..., State], z: State, args: tuple[Any, ...] = (), *, monotonicity: float | None = None
) -> ErrorBound:
    """`‖z − z*‖ ≤ ‖f(z) − z‖ / m` where `z − f(z)` is m-strongly monotone; an estimate where nothing is known of f.

    Certified for cells that are monotone by construction, such as `v + P(z)` with this toolkit's monotone transforms,
    where m = 1. Rounding of f in its own dtype is accounted for, with four units in the last place. Elsewhere the value
    is the length of Newton's correction, `‖(I − J)⁻¹ (f(z) − z)‖`, correct to first order in the distance and kept only
    if that step reduces the residual to a quarter: it is NaN far from z*, and where I − J is singular.

    Args:
        f, args: as in `solvers.solve`.
        z: an iterate, usually the value of a solution.
        monotonicity: m > 0, of `z − f(z)` in the Euclidean norm; 1 − L where f contracts by a factor L. Not checked.
    """
    if monotonicity is not None and not (isinstance(monotonicity, Real) and 0 < float(monotonicity) < math.inf):
        raise ValueError(f"monotonicity={monotonicity!r} must be a finite number above 0")
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return error_bound(f, *detached((z, args)), monotonicity=monotonicity)
    problem = prepare(f, z, args)
    with torch.no_grad(), one_weight(f):
        flat = problem.layout.flatten(z).detach()
        residual = problem(flat) - flat
        if monotonicity is not None:
            rounding = 4 * problem.rounding * torch.linalg.vector_norm((flat + residual).double(), dim=1)
            length = torch.linalg.vector_norm(residual.double(), dim=1) + rounding
            return ErrorBound(length / monotonicity, True, f"z − f(z) is {monotonicity:g}-strongly monotone, as given")

        image = flat + residual
        way, *_ = first_way(problem, problem, flat, image, residual)
        product = WAYS[way](problem, flat, image, spread_at(problem, flat, image))
        newton = solve(
            lambda step: product(step) + residual,
            torch.zeros_like(flat),
            solver=GMRES(),
            rtol=1e-3,
            atol=0,
            max_steps=500,
        )
        step = newton.value
        moved = flat + step
        after = problem(moved)
    length, left, before, scale = (
        torch.linalg.vector_norm(part.double(), dim=1) for part in (step, after - moved, residual, after)
    )
    found = newton.converged & length.isfinite() & (left <= before / 4 + 16 * problem.rounding * scale)
    reason = "the length of Newton's correction, correct to first order"
    return ErrorBound(torch.where(found, length, math.nan), False, reason)
