"""What a benchmark problem is, and two maps whose arrays other frameworks can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def normal(seed: int, *shape: int) -> Tensor:
    """Independent normal numbers in double precision, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Problem:
    """Find the fixed point of each row."""

    f: Map
    """Maps a batch to one of the same shape; rows may differ in their data, and are independent."""
    z0: Tensor
    """(rows, …) where to start."""
    reference: str
    """Where the problem comes from."""

    def row(self, index: int) -> Problem:
        """One row as a problem of its own; the others are evaluated with it, at their start, as f holds their data."""
        before, after = self.z0[:index], self.z0[index + 1 :]

        def alone(z: Tensor) -> Tensor:
            return self.f(torch.cat((before, z, after)))[index : index + 1]

        return Problem(alone, self.z0[index : index + 1], self.reference)


@dataclass(frozen=True)
class Affine:
    """`z ↦ M z + b`, a class so that peers in other frameworks can take the arrays."""

    matrix: Tensor  # (dim, dim)
    shift: Tensor  # (rows, dim)

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.matrix.T + self.shift


@dataclass(frozen=True)
class TanhLayer:
    """`z ↦ tanh(W z + x)`, likewise."""

    weight: Tensor  # (dim, dim)
    inputs: Tensor  # (rows, dim)

    def __call__(self, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + self.inputs)
