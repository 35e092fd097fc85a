"""The weights of a module, the largest first."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

EXACT = 1024
"""Largest smaller side of a matrix whose norm is computed exactly; beyond, it comes from random projections."""
SHOWN = 4
"""Number of weights that are named."""


def weight_norms(module: nn.Module) -> list[tuple[str, float]]:
    """Name and spectral norm of each weight matrix, the largest first; a kernel is the matrix (out, all the rest).

    Names are those of `named_parameters`; a parametrized weight, which they leave out, counts with its current value.
    """
    with torch.no_grad():
        norms = [(name, _spectral_norm(weight)) for name, weight in _matrices(module)]
    return sorted(norms, key=lambda found: -found[1])


def blamed(module: nn.Module, prefix: str = "") -> str:
    """The largest norms in words; empty: there are no weight matrices."""
    norms = weight_norms(module)
    more = ", …" if len(norms) > SHOWN else ""
    return ", ".join(f"{prefix}{name} {norm:.3g}" for name, norm in norms[:SHOWN]) + more


def _matrices(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for place, part in module.named_modules():
        if "parametrizations" in place.split("."):
            continue
        names = [name for name, _ in part.named_parameters(recurse=False)]
        if parametrize.is_parametrized(part):
            names += part.parametrizations  # type: ignore[operator]
        for name in names:
            weight = getattr(part, name)
            if isinstance(weight, Tensor) and weight.ndim > 1 and weight.numel():
                yield f"{place}.{name}" if place else name, weight


def _spectral_norm(weight: Tensor) -> float:
    matrix = weight.detach().flatten(1)
    if not bool(matrix.isfinite().all()):
        return math.inf
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float64))
    if min(matrix.shape) <= EXACT:
        return float(torch.linalg.matrix_norm(matrix, 2))
    return float(torch.svd_lowrank(matrix, q=6, niter=8)[1][0])
