"""The results of a comparison: runs, rows, and the whole."""

from __future__ import annotations

import math
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..contestants.contestant import Contestant
from ..errors import InputError
from ..failures import Failure, Failures
from ..measuring.diagnosis import Diagnosis
from ..measuring.measure import Measurement
from ..tasks.task import Task
from ..training.search import Search
from ..training.train import Training
from .statistics import Difference, paired_difference


@dataclass(frozen=True)
class Run:
    """One network, trained from one seed and measured."""

    seed: int
    training: Training
    measurement: Measurement
    network: nn.Module
    diagnosis: Diagnosis | None = None
    """Diagnosis of the first seed's network; None: another seed's, or it solves no equilibria."""


@dataclass(frozen=True)
class Row:
    """One contestant with its runs."""

    name: str
    contestant: Contestant
    parameters: int
    size: int
    runs: list[Run]
    learning_rate: float
    search: Search | None = None
    """How the learning rate was chosen; None: it was given."""

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Diagnosis of the first seed's network; None: it solves no equilibria, or was not diagnosed."""
        return next((run.diagnosis for run in self.runs if run.diagnosis is not None), None)

    def values(self, figure: str) -> list[float]:
        """A figure of the measurement for each seed for which it could be found."""
        found = [getattr(run.measurement, figure) for run in self.runs]
        return [value for value in found if value is not None]

    def mean(self, figure: str) -> float:
        """A figure of the measurement, averaged over the seeds; NaN: it is known for none."""
        return statistics.mean(self.values(figure) or [math.nan])

    def deviation(self, figure: str) -> float:
        """A figure's standard deviation over the seeds; 0 for one seed, NaN if a value is not finite."""
        values = self.values(figure)
        if not all(map(math.isfinite, values)):
            return math.nan
        return statistics.stdev(values) if len(values) > 1 else 0.0

    @property
    def trained(self) -> bool:
        """Whether there was something to learn."""
        return bool(self.runs[0].training.curves)

    def seconds_per_epoch(self) -> float:
        """Median training time over all epochs of all seeds."""
        return statistics.median(seconds for run in self.runs for seconds in run.training.seconds_per_epoch)

    def latency(self, batch: int) -> float:
        """Median over the seeds, in seconds; NaN: it is known for none."""
        found = [run.measurement.latency[batch] for run in self.runs if batch in run.measurement.latency]
        return statistics.median(found or [math.nan])

    def to_dict(self) -> dict[str, Any]:
        """The numbers, fit for JSON."""
        return {
            "reading": self.contestant.reading,
            "description": self.contestant.description,
            "parameters": self.parameters,
            "size": self.size,
            "baseline": self.contestant.baseline,
            "learning_rate": self.learning_rate,
            "searched": None if self.search is None else {str(rate): s for rate, s in self.search.scores.items()},
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
    """The results of a comparison, as `compare` returns them.

    `rows` hold every run, with its trained network: `comparison.rows[0].runs[0].network`.
    """

    task: Task
    rows: list[Row]
    """One for each network that was measured with at least one seed."""
    settings: dict[str, Any]
    missing: list[str] = field(default_factory=list)
    """Networks that were not measured with any seed."""
    failures: list[Failure] = field(default_factory=list)
    """What went wrong."""

    @property
    def baseline(self) -> str | None:
        """Name of the baseline that all are compared with, which need not take part; None if there are several."""
        names = {row.contestant.baseline for row in self.rows}
        return names.pop() if len(names) == 1 else None

    @property
    def ranked(self) -> list[Row]:
        """The rows by mean score, the best first, those without a finite score last."""

        def place(row: Row) -> tuple[bool, float]:
            score = row.mean("score")
            return not math.isfinite(score), -score if self.task.goal.higher_is_better else score

        return sorted(self.rows, key=place)

    def judged(self, row: Row) -> str:
        """`baseline`; `better` or `worse` by more than the interval; `undecided`; `unknown`: a score is missing."""
        if row.name == row.contestant.baseline:
            return "baseline"
        difference = self.difference(row)
        if difference is None or not math.isfinite(difference.mean):
            return "unknown"
        if not difference.decided:
            return "undecided"
        return "better" if (difference.mean > 0) == self.task.goal.higher_is_better else "worse"

    def verdict(self) -> str:
        """In words: which networks differ from the baseline beyond the interval, at what cost, and which do not."""
        from .verdict import verdict

        return " ".join(verdict(self))

    def difference(self, row: Row) -> Difference | None:
        """The row's score minus its baseline's, paired by seed; None for a baseline, and if no pair is known."""
        baseline = next((other for other in self.rows if other.name == row.contestant.baseline), row)
        if baseline is row:
            return None
        scores, others = ({run.seed: run.measurement.score for run in one.runs} for one in (row, baseline))
        pairs = [(score, others.get(seed)) for seed, score in scores.items()]
        known = [(score, other) for score, other in pairs if score is not None and other is not None]
        return paired_difference(*zip(*known)) if known else None

    def table(self) -> str:
        """The table as text, to print, with the best score on top."""
        from .table import table_text

        return table_text(self)

    def report(self, folder: str | os.PathLike[str]) -> Path:
        """Write `report.html`, one self-contained page, and its figures into a folder; returns the page's path.

        `InputError` if the page cannot be written; in place of a figure that cannot be drawn, it has a line of text.
        """
        from .report import write_report

        failures, place = Failures(), Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the report cannot be written into {place}: {error.strerror}") from error
        write_report(self, place, failures)
        page = place / "report.html"
        if not page.exists():
            raise InputError(f"the report cannot be written: {failures.found[-1].error}")
        return page

    def to_dict(self) -> dict[str, Any]:
        """The numbers, fit for JSON."""
        return {
            "task": self.task.name,
            "description": self.task.description,
            **self.settings,
            "score": self.task.goal.score,
            "verdict": self.verdict(),
            "missing": self.missing,
            "failures": [vars(failure) for failure in self.failures],
            "models": {
                row.name: {**row.to_dict(), "difference": vars(difference) if difference else None}
                for row in self.rows
                for difference in [self.difference(row)]
            },
        }
