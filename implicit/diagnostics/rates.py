"""How fast the rows of a solve converged at last, and which of them did not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solvers import Solution

from .tables import Table

SHORTEST = 3
"""Residuals that a rate needs at least."""
FLAT = 0.01
"""A residual that changes by less than this share a step is taken to stand still."""


@dataclass(frozen=True)
class Tail:
    """The last part of one row's residuals."""

    rate: float
    """Factor by which the residual falls a step, fitted to its logarithm; NaN: fewer than three finite residuals."""
    stalled: bool
    """It stands still: it neither falls nor rises by more than 1 % a step."""
    period: int
    """Steps after which the residuals repeat, of a row that goes round; 0: it does not."""

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def convergence_rate(solution: Solution) -> Tensor:
    """`(batch,)` float64: the factor by which each row's relative residual falls a step at the end of its trace.

    The slope of a line fitted to the logarithm of the last half of its residuals: below 1 it converges, the smaller
    the faster; about 1 it stands still or goes round (`tails` says which); above 1 it runs away. Of plain iteration it
    is the spectral radius of the Jacobian at the solution. NaN: a row of fewer than three residuals.
    """
    return torch.tensor([tail.rate for tail in tails(solution)], dtype=torch.float64)


def tails(solution: Solution) -> Table[Tail]:
    """For each row, how its residuals end: rate, standstill and cycles."""
    columns = solution.trace.double().cpu().numpy().T
    return Table(_tail(column[np.isfinite(column) & (column > 0)]) for column in columns)


def _tail(residuals: NDArray[np.float64]) -> Tail:
    if len(residuals) < SHORTEST:
        return Tail(rate=float("nan"), stalled=False, period=0)
    logs = np.log(residuals[min(len(residuals) // 2, len(residuals) - SHORTEST) :])
    rate = float(np.exp(np.polyfit(np.arange(len(logs)), logs, 1)[0]))
    still = abs(rate - 1) < FLAT
    period = _period(logs) if still else 0
    return Tail(rate, stalled=still and period == 0, period=period)


def _period(logs: NDArray[np.float64]) -> int:
    """The shortest period of at least 2 that the whole tail shows, at least three times; 0: none."""
    spread = np.ptp(logs)
    if spread < FLAT:
        return 0
    return next(
        (lag for lag in range(2, len(logs) // 3 + 1) if np.abs(logs[lag:] - logs[:-lag]).max() < FLAT * spread), 0
    )
