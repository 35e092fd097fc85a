"""How fast the rows of a solve converged in the end, and which of them did not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solvers import Solution

from .tables import Line, Table

SHORTEST = 3
"""Fewest residuals that determine a rate."""
FLAT = 0.01
"""A residual stagnates if it changes by less than this share per step, and by less than ten times it over the tail."""
ALIKE = 0.01
"""A cycle repeats the logarithms of its residuals to within this share of their spread over one period."""
GONE = 1e3
"""Relative residual above which the image has all but vanished, so that its size is only rounding."""


@dataclass(frozen=True)
class Tail(Line):
    """The last part of one row's residuals."""

    rate: float
    """Factor by which the residual falls per step, fitted to its logarithm; NaN: fewer than three finite residuals."""
    stalled: bool
    """Whether the residual stagnates: it changes by less than 1 % per step, and by less than 10 % over the tail."""
    period: int
    """Steps after which the residuals of a cycling row repeat; 0: it does not cycle."""


def convergence_rate(solution: Solution) -> Tensor:
    """`(batch,)` float64: the factor per step by which each row's residual `‖f(z) − z‖` falls at the end of its trace.

    From a line fitted to the logarithm of the last half of its residuals; for a cycle, from period to period.
    Below 1 the row converges, the smaller the faster; near 1 it stagnates or cycles (`tails` says which); above 1 it
    diverges. For plain iteration it is the spectral radius of the Jacobian at the solution. NaN: a row with fewer than
    three residuals.
    """
    return torch.tensor([tail.rate for tail in tails(solution)], dtype=torch.float64, device="cpu")


def tails(solution: Solution) -> Table[Tail]:
    """How the residuals of each row end: rate, stagnation and cycles."""
    absolute, relative = (trace.double().cpu().numpy().T for trace in (solution.absolute, solution.trace))
    return Table(map(_tail, absolute, relative))


def _tail(residuals: NDArray[np.float64], relative: NDArray[np.float64]) -> Tail:
    """The end of one row's trace: its rate from the absolute residuals, its period from the relative ones.

    Where the iterates rotate about a point, the absolute residual may stay constant while the norm of the image cycles.
    """
    steps = np.flatnonzero(~np.isnan(residuals) & (residuals > 0))
    if len(steps) < SHORTEST:
        return Tail(rate=float("nan"), stalled=False, period=0)
    logs = np.log(np.minimum(residuals[steps], np.finfo(np.float64).max))
    turning = np.log(np.clip(relative[steps], np.finfo(np.float64).tiny, GONE))
    period = _period(turning) if steps[-1] - steps[0] == len(steps) - 1 else 0
    if period:
        return Tail(rate=float(np.exp((logs[-1] - logs[-1 - period]) / period)), stalled=False, period=period)
    known = steps[np.isfinite(residuals[steps])]
    known = known[min(len(known) // 2, max(len(known) - SHORTEST, 0)) :]
    if len(known) < SHORTEST:
        return Tail(rate=float("nan"), stalled=False, period=0)
    slope = float(np.polyfit(known, np.log(residuals[known]), 1)[0])
    still = abs(slope) < FLAT and abs(slope) * len(known) < 10 * FLAT
    return Tail(rate=float(np.exp(slope)), stalled=still, period=0)


def _period(logs: NDArray[np.float64]) -> int:
    """The shortest period of at least 2 that the last residuals complete twice or more; 0: none."""
    for lag in range(2, (len(logs) - 1) // 2 + 1):
        window = logs[-3 * lag :]
        spread = np.ptp(window[-lag:])
        if spread >= FLAT and np.abs(window[lag:] - window[:-lag]).max() < ALIKE * spread:
            return lag
    return 0
