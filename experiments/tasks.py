"""The tasks: small labelled data sets that need no download, with a fixed split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """A classification task, all of it in memory."""

    name: str
    description: str
    classes: int
    train: tuple[Tensor, Tensor]
    """Inputs, (n, …) float32, and labels, (n,) int64."""
    test: tuple[Tensor, Tensor]

    def __post_init__(self) -> None:
        for part, (inputs, labels) in (("train", self.train), ("test", self.test)):
            if not bool(inputs.isfinite().all()):
                raise ValueError(f"task {self.name}: the {part} inputs hold NaN or Inf")
            if len(inputs) != len(labels):
                raise ValueError(f"task {self.name}: {len(inputs)} {part} inputs but {len(labels)} labels")


def digits() -> Task:
    """The 1,797 handwritten 8×8 digits bundled with scikit-learn (Alpaydin, Kaynak 1998), a quarter for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)

    def as_images(values: Tensor) -> Tensor:
        return (values.float() / 8 - 1).reshape(-1, 1, 8, 8)

    return Task(
        "digits",
        "handwritten digits, 8×8 pixels, bundled with scikit-learn",
        10,
        (as_images(train_images), train_labels.long()),
        (as_images(test_images), test_labels.long()),
    )


RADII = (1.0, 1.15, 1.9)
"""Of the nested rings: class 0 within the first, class 1 between the second and the third."""


def rings() -> Task:
    """Nested rings in the plane: ‖x‖ ≤ r₁ against r₂ ≤ ‖x‖ ≤ r₃, uniform in area; 1,000 points, 2,000 for testing."""

    def sample(count: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 2
        uniform, angle = torch.rand(2, count, generator=generator)
        inner, gap, outer = RADII
        squared = torch.where(labels == 0, uniform * inner**2, gap**2 + uniform * (outer**2 - gap**2))
        angle = 2 * torch.pi * angle
        return squared.sqrt()[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1), labels

    return Task("rings", "nested rings in the plane", 2, sample(1000, seed=0), sample(2000, seed=1))


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "rings": rings}
"""The tasks of the command line. A new one is a function here and a row."""
