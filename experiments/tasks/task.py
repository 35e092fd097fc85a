"""What a task is: data with a fixed split, a goal, and how to train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from .checks import checked
from .goals import Goal


@dataclass(frozen=True)
class Task:
    """What `compare` trains networks on: data for training and testing, and a goal.

    Both parts are data sets of pairs (input, target), with a length, whose items are tensors of one shape; networks
    see them in batches, (batch, …). A `ValueError` says why data or numbers cannot be trained on.
    """

    name: str
    """Name of the task, for the run's folder and the report."""
    train: Dataset[Any]
    """Pairs of an input and a target."""
    test: Dataset[Any]
    """Likewise; only watched while training, so that no network is chosen on it."""
    _: KW_ONLY
    validation: Dataset[Any] | None = None
    """Likewise; learning rates are chosen on it. None: a fifth of the training part, held back for the search."""
    goal: Goal
    """Loss and score: `Classification(classes)`, `Regression()`, `Restoration()`, `NextCharacter(characters)`, or a
    class of your own."""
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    """The scalar loss of a batch of outputs and targets; None: the goal's."""
    description: str = ""
    """In words, for the report."""
    epochs: int = 15
    """Passes over the training part, by default."""
    batch: int = 64
    """Pairs per training step."""
    learning_rate: float = 4e-3
    """The largest rate of the one-cycle schedule, from which the search for each network's own starts."""
    weight_decay: float = 1e-2
    """Weight decay of the optimiser."""
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    """Called as `optimizer(parameters, lr=…, weight_decay=…)`."""
    collate: Callable[[list[Any]], Any] = default_collate
    """Makes a training batch of a list of pairs."""
    averaging: float | None = None
    """Decay of an exponential moving average of the weights, which is then tested; None: no averaging."""
    workers: int = 0
    """Processes that load the data."""
    measured: int = 2048
    """Test pairs on which costs and solves are measured."""

    def __post_init__(self) -> None:
        checked(self)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch: the task's own, or the goal's."""
        return (self.loss or self.goal.loss)(outputs, targets)

    def sample(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first test pairs as tensors, at most `count` of them; None: at most `measured`."""
        most = min(self.measured if count is None else count, len(self.test))  # type: ignore[arg-type]
        inputs, targets = default_collate([self.test[i] for i in range(most)])
        return inputs, targets


@dataclass(frozen=True)
class Source:
    """Where the data of a task come from, as given on the command line."""

    data: str | None = None
    """Folder; None: the task needs none."""
    download: bool = False
    """Whether to fetch them into the folder first."""
