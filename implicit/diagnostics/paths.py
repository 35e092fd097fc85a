"""Whether the equilibrium depends on where the solve starts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solvers import State
from solvers.state import Layout

from ..draws import normal
from ..layer import Layer
from .tables import summary


@dataclass(frozen=True)
class PathIndependence:
    """The solutions from several random starts, compared with that from the layer's own start."""

    alignment: Tensor = field(repr=False)
    """(batch,) float64, the least cosine with the layer's own solution; 1: the same direction from every start."""
    spread: Tensor = field(repr=False)
    """(batch,) float64, the largest `‖z_i − z*‖ / ‖z*‖`; a few times rtol: the same solution."""
    converged: Tensor = field(repr=False)
    """(starts, batch): whether the solve from this start met its tolerance."""

    def to_dict(self) -> dict[str, list[float]]:
        """One line per row, in plain numbers: `pandas.DataFrame(found.to_dict())`."""
        return {
            "alignment": self.alignment.tolist(),
            "spread": self.spread.tolist(),
            "share_converged": self.converged.double().mean(dim=0).tolist(),
        }

    def _repr_html_(self) -> str:
        return summary(self.to_dict())

    def __repr__(self) -> str:
        if not self.alignment.numel():
            return "PathIndependence(0 rows)"
        share = self.converged.double().mean()
        return (
            f"PathIndependence(least alignment {self.alignment.min():.4f}, largest spread {self.spread.max():.1e}, "
            f"{share:.0%} of {len(self.converged)} starts a row converged)"
        )


def path_independence(
    layer: Layer[Any], *inputs: Any, starts: int = 8, seed: int = 0, z0: State | None = None, **keywords: Any
) -> PathIndependence:
    """Solve from random starts as well: normal numbers with the root mean square of each row's solution.

    A layer whose equilibrium does not depend on the start can be run for longer on harder inputs than it was trained
    on, and can be warm-started. Source: Anil et al., "Path Independent Equilibrium Models Can Better Exploit Test-Time
    Computation", NeurIPS 2022.

    Args:
        layer, inputs, keywords: as the layer is called.
        starts: how many, at least 1.
        seed: of the starts.
        z0: in place of the layer's own start.
    """
    if not isinstance(starts, int) or isinstance(starts, bool) or starts < 1:
        raise ValueError(f"path_independence: starts={starts!r} must be an integer of at least 1")
    inputs = layer.positional(inputs, keywords)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the result reports what converged
        own = layer.solve(*inputs, z0=z0)
        layout = Layout(own.value)
        reference = layout.flatten(own.value)
        scale = reference.square().mean(dim=1, keepdim=True).sqrt()
        scale = torch.where(scale > 0, scale, 1)
        generator = torch.Generator("cpu").manual_seed(seed)
        others = []
        for _ in range(starts):
            noise = normal(reference.shape, reference, generator)
            others.append(layer.solve(*inputs, z0=layout.unflatten(scale * noise)))
    expected = reference.double()
    length = torch.linalg.vector_norm(expected, dim=1)
    found = torch.stack([layout.flatten(other.value).double() for other in others])
    distance = torch.linalg.vector_norm(found - expected, dim=2)
    spread = torch.where(length > 0, distance / length, distance).amax(dim=0)
    cosine = torch.nn.functional.cosine_similarity(found, expected[None], dim=2)
    alignment = torch.where(distance == 0, 1.0, cosine).amin(dim=0)  # equal solutions agree, even if they are 0
    return PathIndependence(alignment, spread, torch.stack([other.converged for other in others]))
