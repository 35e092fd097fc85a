"""Differences between networks that were trained from the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import scipy.stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean paired difference and its confidence interval, by Student's t."""

    mean: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether the interval leaves 0 out: a claim is made of nothing else."""
        return self.low > 0 or self.high < 0


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Of values and baseline values in pairs of one seed; without a second pair the interval is all numbers."""
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Difference(mean, -math.inf, math.inf)
    quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    half = quantile * statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(mean, mean - half, mean + half)
