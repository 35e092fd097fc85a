"""A cell whose state decays on its own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DiagonalInjection(nn.Module):
    """The cell `z⁺ = exp(−softplus(a)) ⊙ z + T(z, *inputs)`: a decay in (0, 1) for each channel, and what T injects.

    Whatever `a` is learned, the linear part contracts. Hence if T is bounded, for example because it normalises its
    input, so is the state after any number of steps: `|z| ≤ max(|z₀|, sup |T| / (1 − decay))`. The steps need not
    settle, since T may still oscillate. Prefer this cell to the plain residual `z + T(z, x)`, whose state may grow with
    every step, in a `Looped` or an `Equilibrium` that is run for longer than it was trained. Source: Prairie et al.,
    "Parcae: Scaling Laws For Stable Looped Language Models", 2026, whose step size is learned as well.

    Args:
        transform: T(z, *inputs), of the shape of z.
        channels: of z.
        decay: initial value of the decay, in (0, 1).
        dim: of the channels in z: −1 for vectors and tokens, 1 for images.
    """

    def __init__(self, transform: nn.Module, channels: int, *, decay: float = 0.5, dim: int = -1) -> None:
        super().__init__()
        if not isinstance(transform, nn.Module):
            raise TypeError(f"DiagonalInjection: transform is a {type(transform).__name__}: pass an nn.Module")
        if not 0 < decay < 1:
            raise ValueError(f"DiagonalInjection: decay={decay!r} must lie between 0 and 1")
        self.transform, self.dim = transform, dim
        self.rate = nn.Parameter(torch.full((channels,), math.log(1 / decay - 1)))

    @property
    def decay(self) -> Tensor:
        """(channels,) factors by which each step multiplies the state."""
        return torch.exp(-F.softplus(self.rate))

    def forward(self, z: Tensor, *inputs: Any) -> Tensor:
        """The next state, of the shape of z."""
        if z.shape[self.dim] != len(self.rate):
            raise ValueError(
                f"DiagonalInjection: z of shape {tuple(z.shape)} has {z.shape[self.dim]} channels in dim {self.dim}, "
                f"not {len(self.rate)}"
            )
        shape = [1] * z.ndim
        shape[self.dim] = -1
        image: Tensor = self.decay.view(shape) * z + self.transform(z, *inputs)
        return image

    def extra_repr(self) -> str:
        return f"channels={len(self.rate)}, dim={self.dim}"
