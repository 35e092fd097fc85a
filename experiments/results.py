"""The results of a comparison: runs, rows, and the whole."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from torch import nn

from .measure import Measurement
from .networks import Contestant
from .tasks import Task
from .training import Training


@dataclass(frozen=True)
class Run:
    """One network, trained from one seed and measured."""

    seed: int
    training: Training
    measurement: Measurement
    network: nn.Module


@dataclass(frozen=True)
class Row:
    """One contestant with its runs."""

    name: str
    contestant: Contestant
    parameters: int
    hidden: int
    runs: list[Run]

    def mean(self, figure: str) -> float:
        """A figure of the measurement, averaged over the seeds."""
        return statistics.mean(getattr(run.measurement, figure) for run in self.runs)

    def deviation(self, figure: str) -> float:
        """Its standard deviation over the seeds; 0 for one seed."""
        values = [getattr(run.measurement, figure) for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def seconds_per_epoch(self) -> float:
        """Median over all epochs of all seeds."""
        return statistics.median(seconds for run in self.runs for seconds in run.training.seconds_per_epoch)

    def latency(self, batch: int) -> float:
        """Median over the seeds, in seconds."""
        return statistics.median(run.measurement.latency[batch] for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, fit for JSON."""
        return {
            "reading": self.contestant.reading,
            "description": self.contestant.description,
            "parameters": self.parameters,
            "hidden": self.hidden,
            "accuracy_mean": self.mean("accuracy"),
            "accuracy_std": self.deviation("accuracy"),
            "runs": [
                {
                    "seed": run.seed,
                    **run.measurement.to_dict(),
                    "curves": run.training.curves,
                    "seconds_per_epoch": run.training.seconds_per_epoch,
                }
                for run in self.runs
            ],
        }


@dataclass(frozen=True)
class Comparison:
    """A finished comparison."""

    task: Task
    rows: list[Row]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The numbers, fit for JSON."""
        return {
            "task": self.task.name,
            "description": self.task.description,
            **self.settings,
            "models": {row.name: row.to_dict() for row in self.rows},
        }
