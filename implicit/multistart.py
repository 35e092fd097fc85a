"""Several starts for each row, which keeps the solution with the least residual."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solvers import Solution
from solvers.state import Layout

from .depths import is_count
from .draws import normal
from .layer import Layer, Z


@dataclass(frozen=True, repr=False)
class MultistartSolution(Solution[Z]):
    """For each row the solution from its best start; `evaluations` are those of all its starts."""

    start: Tensor = field(kw_only=True)
    """(batch,) int64: the start of each row's solution; 0 is the layer's own, the others are random."""
    agreed: Tensor = field(kw_only=True)
    """(batch,) int64: the number of starts, this one included, from which the row reached the same value."""
    residuals: Tensor = field(kw_only=True)
    """(starts, batch): the relative residual from each start."""

    def to_dict(self) -> dict[str, list[Any]]:
        """As for a `Solution`, with `start` and `agreed` added."""
        return {**super().to_dict(), "start": self.start.tolist(), "agreed": self.agreed.tolist()}

    def __repr__(self) -> str:
        if not self.agreed.numel():
            return "MultistartSolution(0 rows)"
        least, most = self.agreed.aminmax()
        among = f"{int(least)} to {int(most)}" if least < most else f"{int(most)}"
        return f"Multistart{super().__repr__()[:-1]}, {among} of {len(self.residuals)} starts agree)"


def multistart(
    layer: Layer[Z], *inputs: Any, starts: int = 8, agreement: float = 0.01, seed: int = 0, **keywords: Any
) -> MultistartSolution[Z]:
    """Solve from the layer's own start and from random ones; each row keeps the solution with the least residual.

    Rows that converged come before those that did not. The random starts are normal numbers, the same for all rows,
    with the root mean square of the row's first solution. Prefer it at test time, for a layer with several equilibria
    if the least residual marks the best one, as in a trained reasoning model. Where all starts agree, one is enough. No
    graph is recorded: `layer(x, z0=multistart(layer, x).value)` continues from there, with a gradient. Source: Huang,
    Geng, Kolter, "Equilibrium Reasoners", ICML 2026.

    Args:
        layer: a `Looped` or an `Equilibrium`, which is solved once from each start.
        inputs, keywords: of its `solve`; `z0`, if given, replaces the layer's own start.
        starts: how many, its own included.
        agreement: two values are the same where `‖z − z'‖ ≤ agreement·‖z‖`.
        seed: of the random starts.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"multistart: layer is a {type(layer).__name__}, not a Looped or an Equilibrium")
    if not is_count(starts):
        raise ValueError(f"multistart: starts={starts!r} must be an integer of at least 1")
    if not isinstance(agreement, (int, float)) or not 0 <= agreement < math.inf:
        raise ValueError(f"multistart: agreement={agreement!r} must be a finite number of at least 0")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise ValueError(f"multistart: seed={seed!r} must be an integer of at least 0, below 2**64")
    found = [layer.solve(*inputs, **keywords)]
    layout = Layout(found[0].value)
    own = layout.flatten(found[0].value)
    scale = own.square().mean(dim=1, keepdim=True).sqrt()
    scale = torch.where((scale > 0) & scale.isfinite(), scale, 1)
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(starts - 1):
        z0 = layout.unflatten(scale * normal(own[:1].shape, own, generator))  # as each row would get alone
        found.append(layer.solve(*inputs, **{**keywords, "z0": z0}))
    return _best(found, layout, agreement)


def _best(found: list[Solution[Z]], layout: Layout, agreement: float) -> MultistartSolution[Z]:
    residuals = torch.stack([solution.residual for solution in found])
    converged = torch.stack([solution.converged for solution in found])
    rank = residuals.nan_to_num(nan=math.inf)
    start = torch.where(converged.any(dim=0) & ~converged, math.inf, rank).argmin(dim=0)
    values = torch.stack([layout.flatten(solution.value) for solution in found])
    rows = torch.arange(layout.batch, device=start.device)
    chosen = values[start, rows]
    same = (values - chosen).norm(dim=2) <= agreement * chosen.norm(dim=1)
    length = max(len(solution.trace) for solution in found)

    def of_chosen(name: str) -> Tensor:
        parts = [getattr(solution, name) for solution in found]
        if parts[0].ndim == 1:
            return torch.stack(parts)[start, rows]
        padded = [torch.cat((part, part.new_full((length - len(part), layout.batch), math.nan))) for part in parts]
        return torch.stack(padded)[start, :, rows].T

    by_row = "residual", "status", "steps", "trace", "absolute", "floored"
    told: dict[str, Any] = {name: of_chosen(name) for name in by_row}
    return MultistartSolution(
        value=layout.unflatten(chosen),
        evaluations=torch.stack([solution.evaluations for solution in found]).sum(dim=0),
        alternatives=found[0].alternatives,
        budget=found[0].budget,
        fixed=found[0].fixed,
        rounding=found[0].rounding,
        start=start,
        agreed=same.sum(dim=0),
        residuals=residuals,
        **told,
    )
