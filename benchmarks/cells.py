"""Cells on which gradients are measured: in double precision, the same at every build."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .problem import normal

DIM, BATCH = 64, 16


class DenseCell(nn.Module):
    """`tanh(W z + U x)`."""

    def __init__(self, inner: Tensor, inject: Tensor) -> None:
        super().__init__()
        self.inner, self.inject = nn.Parameter(inner), nn.Parameter(inject)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.inner.T + x @ self.inject.T)


class ConvolutionalCell(nn.Module):
    """`norm(relu(z + norm(x + conv(norm(relu(conv(z)))))))`, convolutions 3×3, the norms over groups of channels."""

    def __init__(self, inner: Tensor, outer: Tensor, groups: int) -> None:
        super().__init__()
        hidden, channels = inner.shape[:2]
        self.inner, self.outer = nn.Parameter(inner), nn.Parameter(outer)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) for width in (hidden, channels, channels))
        self.norms.to(inner.dtype)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        first, second, last = self.norms
        hidden = first(torch.relu(F.conv2d(z, self.inner, padding=1)))
        branch = second(x + F.conv2d(hidden, self.outer, padding=1))
        image: Tensor = last(torch.relu(z + branch))
        return image


@dataclass(frozen=True)
class Case:
    """A gradient to find: that of `⟨weight, z*⟩` in x and the cell's parameters."""

    cell: nn.Module
    x: Tensor
    weight: Tensor


def _dense(inner: Tensor) -> Case:
    """A tanh layer with small inputs, which leave the slope of tanh near 1 and the Jacobian near W."""
    cell = DenseCell(inner, normal(1, DIM, DIM) / DIM**0.5)
    return Case(cell, 0.3 * normal(2, BATCH, DIM), normal(3, BATCH, DIM))


def _gaussian() -> Tensor:
    """A matrix of norm 1 whose eigenvalues lie in a disc of radius about 1/2."""
    matrix = normal(4, DIM, DIM)
    return matrix / torch.linalg.matrix_norm(matrix, 2)


def _symmetric() -> Tensor:
    """A symmetric matrix with equidistant eigenvalues from −1 to 1."""
    return _basis() * torch.linspace(-1, 1, DIM, dtype=torch.float64) @ _basis().T


def _rotation(least: float, largest: float) -> Tensor:
    """A rotation of planes by angles between these multiples of π: its eigenvalues lie on the unit circle."""
    angles = math.pi * torch.linspace(least, largest, DIM // 2, dtype=torch.float64)
    turns = [torch.stack((torch.stack((c, -s)), torch.stack((s, c)))) for c, s in zip(angles.cos(), angles.sin())]
    return _basis() @ torch.block_diag(*turns) @ _basis().T


def _basis() -> Tensor:
    return torch.linalg.qr(normal(5, DIM, DIM))[0]


def _convolutional() -> Case:
    cell = ConvolutionalCell(0.05 * normal(6, 8, 4, 3, 3), 0.05 * normal(7, 4, 8, 3, 3), groups=2)
    return Case(cell, normal(8, 8, 4, 8, 8), normal(9, 8, 4, 8, 8))


CASES: dict[str, Callable[[], Case]] = {
    "Gaussian 0.9": lambda: _dense(0.9 * _gaussian()),
    "Gaussian 0.99": lambda: _dense(0.99 * _gaussian()),
    "symmetric 0.99": lambda: _dense(0.99 * _symmetric()),
    "orthogonal 0.99": lambda: _dense(0.99 * _rotation(0, 1)),
    "convolutional": _convolutional,
    "rotation 1.1": lambda: _dense(1.1 * _rotation(0.25, 0.75)),
}
"""Named by the matrix of a dense tanh layer and its norm; the last expands, while I − J stays well conditioned."""
