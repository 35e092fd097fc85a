"""The results of a comparison: runs, rows, and the whole."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from torch import nn

from .diagnosis import Diagnosis
from .families import Contestant
from .measure import Measurement
from .statistics import Difference, paired_difference
from .tasks import Task
from .training import Training


@dataclass(frozen=True)
class Run:
    """One network, trained from one seed and measured."""

    seed: int
    training: Training
    measurement: Measurement
    network: nn.Module
    diagnosis: Diagnosis | None = None
    """Of the first seed's network; None: another seed's, or it solves no equilibria."""


@dataclass(frozen=True)
class Row:
    """One contestant with its runs."""

    name: str
    contestant: Contestant
    parameters: int
    dial: int
    runs: list[Run]

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Of the first run's network; None: it solves no equilibria."""
        return self.runs[0].diagnosis

    def mean(self, figure: str) -> float:
        """A figure of the measurement, averaged over the seeds."""
        return statistics.mean(getattr(run.measurement, figure) for run in self.runs)

    def deviation(self, figure: str) -> float:
        """Its standard deviation over the seeds; 0 for one seed."""
        values = [getattr(run.measurement, figure) for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    @property
    def trained(self) -> bool:
        """Whether there was something to learn."""
        return bool(self.runs[0].training.curves)

    def seconds_per_epoch(self) -> float:
        """Median over all epochs of all seeds, of what was trained."""
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
            "dial": self.dial,
            "baseline": self.contestant.baseline,
            "learning_rate": self.contestant.learning_rate,
            "score_mean": self.mean("score"),
            "score_std": self.deviation("score"),
            "diagnosis": self.diagnosis.to_dict() if self.diagnosis else None,
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

    @property
    def baseline(self) -> str | None:
        """The row that all are compared with, which need not take part; None where there are several."""
        names = {row.contestant.baseline for row in self.rows}
        return names.pop() if len(names) == 1 else None

    def difference(self, row: Row) -> Difference | None:
        """Of the row's score to its baseline's, over the seeds; None for a baseline, and where it took no part."""
        baseline = next((other for other in self.rows if other.name == row.contestant.baseline), row)
        if baseline is row:
            return None
        scores = [[run.measurement.score for run in other.runs] for other in (row, baseline)]
        return paired_difference(*scores)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, fit for JSON."""
        return {
            "task": self.task.name,
            "description": self.task.description,
            **self.settings,
            "score": self.task.goal.score,
            "models": {
                row.name: {**row.to_dict(), "difference": vars(difference) if difference else None}
                for row in self.rows
                for difference in [self.difference(row)]
            },
        }
