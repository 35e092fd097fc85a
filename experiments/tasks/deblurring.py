"""An inverse problem with a known optimum: deblur photographs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from .goals import Restoration
from .task import Task

SIDE = 24
NOISE = 0.01
"""Standard deviation, for grey values in [0, 1]."""
RADIUS, SPREAD = 3, 1.2
"""Radius and standard deviation of the Gaussian blur, in pixels."""


def blur(pictures: Tensor) -> Tensor:
    """B x, a Gaussian blur of (batch, 1, height, width) pictures that are continued periodically, so that Bᵀ = B."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=pictures.dtype, device=pictures.device)
    line = torch.exp(-(offsets**2) / (2 * SPREAD**2))
    line = line / line.sum()
    padded = F.pad(pictures, (RADIUS,) * 4, mode="circular")
    return F.conv2d(F.conv2d(padded, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))


def deblur() -> Task:
    """Crops of the two photographs bundled with scikit-learn, blurred, with noise; the lower quarter is for testing."""
    from sklearn.datasets import load_sample_images

    generator = torch.Generator("cpu").manual_seed(0)
    train, test = [], []
    for photograph in load_sample_images().images:
        grey = torch.tensor(photograph, device="cpu").float().mean(dim=2) / 255
        split = 3 * grey.shape[0] // 4
        upper, lower = grey[:split], grey[split:]
        reach = torch.tensor([split - SIDE, grey.shape[1] - SIDE], device="cpu")
        corners = torch.rand(128, 2, generator=generator, device="cpu") * reach
        train += [upper[i : i + SIDE, j : j + SIDE] for i, j in corners.long().tolist()]
        tiles = lower.unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE)
        test += list(tiles.reshape(-1, SIDE, SIDE))

    def pairs(crops: list[Tensor]) -> TensorDataset:
        sharp = torch.stack(crops)[:, None]
        noise = NOISE * torch.randn(sharp.shape, generator=generator, device="cpu")
        return TensorDataset(blur(sharp) + noise, sharp)

    return Task(
        "deblur",
        pairs(train),
        pairs(test),
        goal=Restoration(),
        description=f"photographs bundled with scikit-learn, {SIDE}×{SIDE}, blurred by {SPREAD} pixels, noise {NOISE}",
        epochs=10,
        batch=32,
        learning_rate=5e-3,
        weight_decay=0.0,
    )
