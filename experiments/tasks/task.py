"""What a task is: data with a fixed split, a goal, and how long to train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from .goals import Goal


@dataclass(frozen=True)
class Task:
    """Data for training and testing, and what they are for."""

    name: str
    """On the command line."""
    description: str
    """In words, for the report."""
    goal: Goal
    """Loss and score."""
    train: Dataset[Any]
    """Pairs of an input and a target."""
    test: Dataset[Any]
    """Likewise; only watched while training."""
    epochs: int = 15
    """Passes over the training part, unless told otherwise."""
    batch: int = 64
    """Pairs a training step."""
    learning_rate: float = 4e-3
    """The largest of the one-cycle schedule."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    collate: Callable[[list[Any]], Any] = default_collate
    """Makes a training batch of a list of pairs."""
    averaging: float | None = None
    """Decay of an exponential moving average of the weights, which is what is tested; None: no averaging."""
    workers: int = 0
    """Processes that load the data."""
    measured: int = 2048
    """Test pairs on which costs and solves are measured."""

    def __post_init__(self) -> None:
        for part in (self.train, self.test):
            if isinstance(part, TensorDataset):
                for tensor in part.tensors:
                    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                        raise ValueError(f"task {self.name}: its data hold NaN or Inf")

    def sample(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first test pairs, at most so many, `measured` of them by default, as tensors."""
        most = min(self.measured if count is None else count, len(self.test))  # type: ignore[arg-type]
        inputs, targets = default_collate([self.test[i] for i in range(most)])
        return inputs, targets


@dataclass(frozen=True)
class Source:
    """Where the data of a task come from, as the command line has it."""

    data: str | None = None
    """Folder; None: the task needs none."""
    download: bool = False
    """Whether to fetch them into the folder first."""
