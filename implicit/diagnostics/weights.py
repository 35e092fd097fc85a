"""The weights of a module, the largest first."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

EXACT = 1024
"""Largest smaller side of a matrix whose norm is computed exactly; beyond, it comes from random projections."""
NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
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
    areas = {name: math.prod(weight.shape[2:]) for name, weight in _matrices(module)}
    shown = [f"{prefix}{name} {norm:.3g}{_as_convolution(norm, areas[name])}" for name, norm in norms[:SHOWN]]
    return ", ".join(shown) + (", …" if len(norms) > SHOWN else "")


def _as_convolution(norm: float, area: int) -> str:
    """A convolution of stride 1 has at most √area times the norm of its kernel as a matrix."""
    return f" (its convolution: up to {math.sqrt(area) * norm:.3g})" if area > 1 else ""


def smaller(cell: nn.Module) -> str:
    """How to make the weights of a cell smaller, in words."""
    bounds = ["torch.nn.utils.parametrizations.spectral_norm and a factor below 1"]
    if any(weight.ndim > 2 for _, weight in _matrices(cell)):
        bounds.append("convolutions by models.ContractiveConv (spectral_norm bounds the kernel as a matrix only)")
    if not any(True for _ in _matrices(cell)):
        return "scale down what acts on z"
    words = f"scale down the largest weights that act on z, or bound them by {', '.join(bounds)}"
    if any(isinstance(part, NORMALISATIONS) for part in cell.modules()):
        words += (
            ". The size of a weight in front of a normalisation has no effect: add jacobian_penalty to the loss, or "
            "take the last normalisation out of the cell"
        )
    return words


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
