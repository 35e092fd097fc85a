"""Differences between networks that were trained from the same seeds, and slopes of error against depth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
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
        """Whether the interval excludes 0: only then is a claim made.

        An interval of zero width comes from differences that are equal because the score is coarse; it decides nothing.
        """
        return self.low < self.high and (self.low > 0 or self.high < 0)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """The mean difference of values and baseline values, paired by seed; for one pair the interval is all numbers.

    NaN if a value is not finite, as after a training that diverged.
    """
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    if not all(map(math.isfinite, differences)):
        return Difference(math.nan, math.nan, math.nan)
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Difference(mean, -math.inf, math.inf)
    quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    half = quantile * statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Slope:
    """Exponent p of error ∝ depth^p, by least squares on the logarithms of all runs, and its confidence interval."""

    value: float
    low: float
    high: float


def fitted_slope(errors: Mapping[int, Sequence[float]]) -> Slope:
    """The slope from the errors of all seeds at each depth, without diverged runs; NaN for too few runs or depths."""
    points = [
        (math.log(depth), math.log(error))
        for depth, values in errors.items()
        for error in values
        if error > 0 and math.isfinite(error)
    ]
    if len(points) < 3 or len({depth for depth, _ in points}) < 2:
        return Slope(math.nan, -math.inf, math.inf)
    fit = scipy.stats.linregress(*zip(*points))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(points) - 2) * fit.stderr)
    return Slope(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)
