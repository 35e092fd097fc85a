"""The residuals of a solve, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from solvers import Solution


def residual_quantiles(solution: Solution, quantiles: Sequence[float] = (0.1, 0.5, 0.9)) -> Tensor:
    """Quantiles over the rows of the relative residual at each step, (steps, quantiles), float64 on the CPU.

    A row that has stopped counts with its last residual; steps at which no row has a finite residual are NaN.
    """
    trace = solution.trace.cpu().clone()
    if not trace.shape[1]:
        return trace.new_full((len(trace), len(quantiles)), torch.nan)
    for step in range(1, len(trace)):
        trace[step] = torch.where(trace[step].isnan(), trace[step - 1], trace[step])
    return torch.nanquantile(trace, torch.tensor(quantiles, dtype=trace.dtype), dim=1).T
