"""Small tasks that bring their data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .goals import Classification, Regression
from .task import Task


def digits() -> Task:
    """The 1,797 handwritten 8×8 digits bundled with scikit-learn (Alpaydin, Kaynak 1998), a quarter for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)

    def pairs(images: Tensor, labels: Tensor) -> TensorDataset:
        return TensorDataset((images.float() / 8 - 1).reshape(-1, 1, 8, 8), labels.long())

    return Task(
        "digits",
        pairs(train_images, train_labels),
        pairs(test_images, test_labels),
        goal=Classification(10),
        description="handwritten digits, 8×8 pixels, bundled with scikit-learn",
        epochs=7,
        batch=128,
        learning_rate=6e-3,
    )


RADII = (1.0, 1.15, 1.9)
"""Radii of the nested rings: class 0 lies within the first, class 1 between the second and the third."""


def rings() -> Task:
    """Nested rings in the plane: ‖x‖ ≤ r₁ against r₂ ≤ ‖x‖ ≤ r₃, uniform in area; 1,000 points, 2,000 for testing."""

    def pairs(count: int, seed: int, repeats: int) -> TensorDataset:
        generator = torch.Generator("cpu").manual_seed(seed)
        labels = torch.arange(count, device="cpu") % 2
        uniform, angle = torch.rand(2, count, generator=generator, device="cpu")
        inner, gap, outer = RADII
        squared = torch.where(labels == 0, uniform * inner**2, gap**2 + uniform * (outer**2 - gap**2))
        angle = 2 * torch.pi * angle
        points = squared.sqrt()[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1)
        return TensorDataset(points.repeat(repeats, 1), labels.repeat(repeats))

    return Task(
        "rings",
        pairs(1000, seed=0, repeats=8),
        pairs(2000, seed=1, repeats=1),
        validation=pairs(1000, seed=2, repeats=1),
        goal=Classification(2),
        description="nested rings in the plane, 1,000 points, each eight times per epoch",
        epochs=10,
        batch=250,
        learning_rate=1e-2,
    )


DIMENSIONS = 8
"""Number of signs in the parity task."""


def parity() -> Task:
    """Parity: all points of {−1, 1}⁸, the class is the sign of the product. All are trained on: approximation."""
    points = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], device="cpu")] * DIMENSIONS)
    labels = (points.prod(dim=1) > 0).long()
    whole = TensorDataset(points, labels)
    return Task(
        "parity",
        TensorDataset(points.repeat(32, 1), labels.repeat(32)),
        whole,
        validation=whole,
        goal=Classification(2),
        description="the parity of 8 signs, all 256 points, 32 times per epoch; the test part is the same points",
        epochs=10,
        batch=256,
        learning_rate=1e-2,
        weight_decay=0.0,
    )


FOLDS = 3
"""Folds of Telgarsky's function."""


def telgarsky_function(x: Tensor, folds: int = FOLDS) -> Tensor:
    """The `folds`-fold composition of the tent map m(x) = 2x up to ½, 2 − 2x from there: 2^(folds − 1) teeth."""
    for _ in range(folds):
        x = 1 - (2 * x - 1).abs()
    return x


def telgarsky() -> Task:
    """Telgarsky's function on [0, 1]: 4,096 points for training, 2,000 for testing."""

    def pairs(x: Tensor) -> TensorDataset:
        return TensorDataset(2 * x[:, None] - 1, telgarsky_function(x)[:, None])

    generator = torch.Generator("cpu").manual_seed(0)
    return Task(
        "telgarsky",
        pairs(torch.rand(4096, generator=generator, device="cpu")),
        pairs(torch.linspace(0, 1, 2000, device="cpu")),
        goal=Regression(),
        description=f"Telgarsky's function of {2 ** (FOLDS - 1)} teeth on an interval, scaled to [−1, 1]",
        batch=128,
        learning_rate=1e-2,
        weight_decay=0.0,
    )
