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
    """What it is multiplied by where people read it."""
    higher_is_better: ClassVar[bool]

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The training loss of a batch."""

    @abstractmethod
    def metric(self) -> Any:
        """A torchmetrics metric that gathers the score over batches."""

    @property
    def heading(self) -> str:
        """The score with its unit."""
        return f"{self.score} {self.unit}".strip()

    def show(self, value: float) -> str:
        """The scaled value in as many digits as can matter."""
        return f"{self.scale * value:.2f}"


@dataclass(frozen=True)
class Classification(Goal):
    """Cross-entropy; the share of right answers."""

    classes: int
    label_smoothing: float = 0.0

    score: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "%"
    scale: ClassVar[float] = 100.0
    higher_is_better: ClassVar[bool] = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of (batch, classes) logits, and labels, (batch,), or shares of classes, (batch, classes)."""
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def metric(self) -> Any:
        from torchmetrics.classification import MulticlassAccuracy

        return MulticlassAccuracy(self.classes, average="micro")


@dataclass(frozen=True)
class ExactMatch(Goal):
    """Cross-entropy of several answers a row, as the cells of a puzzle; the share of rows with all of them right."""

    classes: int

    score: ClassVar[str] = "solved"
    unit: ClassVar[str] = "%"
    scale: ClassVar[float] = 100.0
    higher_is_better: ClassVar[bool] = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of (batch, classes, answers) logits and (batch, answers) labels."""
        return nn.functional.cross_entropy(outputs, targets)

    def metric(self) -> Any:
        from torchmetrics.classification import MulticlassExactMatch

        return MulticlassExactMatch(self.classes)


class _SquaredError(Goal):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, targets)


@dataclass(frozen=True)
class Regression(_SquaredError):
    """Mean squared error, for both."""

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
    """Mean squared error of pictures in [0, 1]; the peak signal-to-noise ratio, −10 log₁₀ of it."""

    score: ClassVar[str] = "PSNR"
    unit: ClassVar[str] = "dB"
    scale: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True

    def metric(self) -> Any:
        from torchmetrics.image import PeakSignalNoiseRatio

        return PeakSignalNoiseRatio(data_range=1.0)


@dataclass(frozen=True)
class NextCharacter(Goal):
    """Cross-entropy of the next character at every place of a window; the same in bits."""

    characters: int
    """Different ones."""

    score: ClassVar[str] = "bits per character"
    unit: ClassVar[str] = ""
    scale: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = False

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of (batch, length, characters) logits and (batch, length) numbers of characters."""
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def metric(self) -> Any:
        from .bits import BitsPerCharacter

        return BitsPerCharacter()

    def show(self, value: float) -> str:
        return f"{value:.3f}"


def margins(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """(batch,) distances to the decision boundary to first order, negative where the answer is wrong.

    The right logit less the largest other one, over the length of that difference's gradient in the input.
    """
    points = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = network(points)
        right = nn.functional.one_hot(labels, logits.shape[1]).bool()
        difference = logits[right] - logits.masked_fill(right, -torch.inf).amax(dim=1)
        (slope,) = torch.autograd.grad(difference.sum(), points)
    return difference.detach() / slope.flatten(1).norm(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
