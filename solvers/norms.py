"""How far an iterate is from a solution: the norms in which residuals are measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .fused import fusible

SMALL = 2**13
"""Entries of a state up to which copying it costs less than calling one more operation."""
RANGE = {torch.float32: (1e-18, 1e18), torch.float64: (1e-150, 1e150)}


class Norm(ABC):
    """Measures a solve: one number per row for `f(z) − z`, and one for `f(z)`."""

    @abstractmethod
    def measure(self, residual: Tensor, image: Tensor, rtol: float, atol: float, robust: bool) -> Tensor:
        """The numbers, (2, …, rows), of (…, rows, dim) residuals and images, without waiting for a GPU.

        Args:
            residual, image: of one step or of several.
            rtol, atol: the tolerances of the solve.
            robust: whether to keep squares in the range of the dtype, at the price of a slower pass.
        """

    def difference(self, image: Tensor, z: Tensor, rtol: float, atol: float, robust: bool) -> tuple[Tensor, Tensor]:
        """`f(z) − z`, and `measure` of this residual and the image."""
        residual = image - z
        return residual, self.measure(residual, image, rtol, atol, robust)


@dataclass(frozen=True)
class Euclidean(Norm):
    """The 2-norm over all entries of a row: `‖f(z) − z‖₂ ≤ atol + rtol·‖f(z)‖₂`.

    The default. Large entries dominate: prefer `Entrywise` where small ones matter as much.
    """

    def measure(self, residual: Tensor, image: Tensor, rtol: float, atol: float, robust: bool) -> Tensor:
        norms = _robust_norms if robust else partial(torch.linalg.vector_norm, dim=-1)
        if residual.numel() <= SMALL:
            return norms(torch.stack((residual, image)))
        return torch.stack((norms(residual), norms(image)))

    def difference(self, image: Tensor, z: Tensor, rtol: float, atol: float, robust: bool) -> tuple[Tensor, Tensor]:
        if not fusible(image):
            return super().difference(image, z, rtol, atol, robust)
        from .norms_triton import residual_and_norms

        return residual_and_norms(image, z)


@dataclass(frozen=True)
class Entrywise(Norm):
    """Each entry meets its own tolerance: `|f(z) − z| ≤ atol + rtol·|f(z)|` in all entries of a row.

    The two numbers are those of the entry furthest above its tolerance. Prefer it where entries differ by orders of
    magnitude and the small ones matter: the far ends of a graph, decaying fields. With atol=0, an entry whose solution
    is 0 must be met exactly.
    """

    def measure(self, residual: Tensor, image: Tensor, rtol: float, atol: float, robust: bool) -> Tensor:
        if not residual.shape[-1]:
            return residual.new_zeros(2, *residual.shape[:-1])
        size, scale = residual.abs(), image.abs()
        excess = torch.where(size == 0, 0, size / (atol + rtol * scale))
        worst = excess.argmax(dim=-1, keepdim=True)  # a NaN counts as the largest
        return torch.stack((size, scale)).gather(-1, worst.expand(2, *worst.shape)).squeeze(-1)


class Measure(NamedTuple):
    """A norm with the tolerances of a solve."""

    norm: Norm
    rtol: float
    atol: float

    def __call__(self, residual: Tensor, image: Tensor, robust: bool = False) -> Tensor:
        return self.norm.measure(residual, image, self.rtol, self.atol, robust)

    def difference(self, image: Tensor, z: Tensor, robust: bool) -> tuple[Tensor, Tensor]:
        """The residual `f(z) − z`, with the norms."""
        return self.norm.difference(image, z, self.rtol, self.atol, robust)

    def on_host(self, residual: Tensor, image: Tensor) -> NDArray[np.float64]:
        """(2, rows) norms of one step, without over- or underflow while the result is representable."""
        return self(residual.double(), image.double(), robust=True).cpu().numpy()


def _robust_norms(x: Tensor) -> Tensor:
    """2-norms over the last dim, in double precision, whose squares stay in range."""
    visible = x.is_cpu and not torch.compiler.is_compiling()  # asked first: no size may become a condition of a graph
    if visible and x.dtype in RANGE and x.numel() > (SMALL if x.dtype == torch.float32 else 0):
        plain = torch.linalg.vector_norm(x.detach(), dim=-1)
        if not extreme(plain.numpy(), x.dtype):  # this costs less than a slower pass
            return plain.double()
    if x.dtype == torch.float32 or not x.shape[-1]:
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=-1, keepdim=True)
    safe = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    return torch.where(largest.isfinite(), torch.linalg.vector_norm(x / safe, dim=-1, keepdim=True) * safe, largest)[
        ..., 0
    ]


def row_norms(x: Tensor) -> NDArray[np.float64]:
    """(rows,) 2-norms on the host, of (rows, dim)."""
    return _robust_norms(x.detach()).double().cpu().numpy()


def out_of_range(norms: NDArray[np.float64], dtype: torch.dtype) -> NDArray[np.bool_]:
    """Where squares may have left the dtype's range, so that a plain norm of 0, Inf or NaN may be an artefact."""
    small, large = RANGE[dtype]
    return ~((norms > small) & (norms < large))


def extreme(norms: NDArray[np.float64], dtype: torch.dtype) -> bool:
    """Whether any norm is out of range."""
    small, large = RANGE[dtype]
    return not (norms.min() > small and norms.max() < large)


def overflowing(norms: NDArray[np.float64], dtype: torch.dtype) -> bool:
    """Whether finite norms other than 0 are out of range."""
    if not extreme(norms, dtype):
        return False
    told = norms[np.isfinite(norms) & (norms != 0)]
    return bool(told.size) and extreme(told, dtype)
