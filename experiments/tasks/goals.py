"""What networks are trained for and judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Goal(ABC):
    """A loss to train with and a score to judge by."""

    score: ClassVar[str]
    """The score's name."""
    unit: ClassVar[str]
    """Its unit, after scaling; empty: none."""
    scale: ClassVar[float]
    """Factor on the score where people read it."""
    higher_is_better: ClassVar[bool]

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The training loss of a batch."""

    @abstractmethod
    def metric(self) -> Any:
        """A torchmetrics metric that accumulates the score over batches."""

    @property
    def heading(self) -> str:
        """The score with its unit."""
        return f"{self.score} {self.unit}".strip()

    def show(self, value: float) -> str:
        """The scaled value, with as many digits as can matter."""
        return f"{self.scale * value:.2f}"


@dataclass(frozen=True)
class Classification(Goal):
    """Trained on cross-entropy, judged by the share of right answers."""

    classes: int
    label_smoothing: float = 0.0

    score: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "%"
    scale: ClassVar[float] = 100.0
    higher_is_better: ClassVar[bool] = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of (batch, classes) logits, given labels (batch,) or shares of the classes (batch, classes)."""
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def metric(self) -> Any:
        from torchmetrics.classification import MulticlassAccuracy

        return MulticlassAccuracy(self.classes, average="micro")


@dataclass(frozen=True)
class ExactMatch(Goal):
    """Trained on the cross-entropy of several answers per row, as in puzzles; judged by the share of rows all right."""

    classes: int

    score: ClassVar[str] = "solved"
    unit: ClassVar[str] = "%"
    scale: ClassVar[float] = 100.0
    higher_is_better: ClassVar[bool] = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of (batch, classes, answers) logits, given (batch, answers) labels."""
        return nn.functional.cross_entropy(outputs, targets)

    def metric(self) -> Any:
        from torchmetrics.classification import MulticlassExactMatch

        return MulticlassExactMatch(self.classes)


class _SquaredError(Goal):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs and targets of one shape."""
        if outputs.shape != targets.shape:
            shapes = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}"
            raise ValueError(f"{shapes} do not match: make them alike, such as (batch, 1) for one number per row")
        return nn.functional.mse_loss(outputs, targets)


@dataclass(frozen=True)
class Regression(_SquaredError):
    """Trained on and judged by the mean squared error."""

    score: ClassVar[str] = "MSE"
    unit: ClassVar[str] = ""
    scale: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = False

    def metric(self) -> Any:
        from torchmetrics import MeanSquaredError

        return MeanSquaredError()

    def show(self, value: float) -> str:
        return f"{value:.2e}"


@dataclass(frozen=True)
class Restoration(_SquaredError):
    """Trained on the mean squared error of pictures in [0, 1], judged by the PSNR, −10 log₁₀ of it."""

    score: ClassVar[str] = "PSNR"
    unit: ClassVar[str] = "dB"
    scale: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True

    def metric(self) -> Any:
        from torchmetrics.image import PeakSignalNoiseRatio

        return PeakSignalNoiseRatio(data_range=1.0)


@dataclass(frozen=True)
class NextCharacter(Goal):
    """Trained on the cross-entropy of the next character at every place of a window, judged by the same in bits."""

    characters: int
    """Number of different characters."""

    score: ClassVar[str] = "bits per character"
    unit: ClassVar[str] = ""
    scale: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = False

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of (batch, length, characters) logits, given (batch, length) character numbers."""
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def metric(self) -> Any:
        from .bits import BitsPerCharacter

        return BitsPerCharacter()

    def show(self, value: float) -> str:
        return f"{value:.3f}"


def margins(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """(batch,) first-order distances to the decision boundary, negative where the answer is wrong.

    The right logit minus the largest other one, divided by the norm of that difference's gradient in the input.
    """
    points = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = network(points)
        right = nn.functional.one_hot(labels, logits.shape[1]).bool()
        difference = logits[right] - logits.masked_fill(right, -torch.inf).amax(dim=1)
        (slope,) = torch.autograd.grad(difference.sum(), points)
    return difference.detach() / slope.flatten(1).norm(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
