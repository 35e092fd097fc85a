"""The residuals of a solve, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from solvers import Solution

from .arrays import as_array


def residual_quantiles(solution: Solution | ArrayLike, quantiles: Sequence[float] = (0.1, 0.5, 0.9)) -> Tensor:
    """Quantiles over the rows of the relative residual at each step, (steps, quantiles), float64 on the CPU.

    A row that has stopped keeps its last residual; steps at which no row has a finite residual are NaN.

    Args:
        solution: a `Solution`, or plain residuals, (steps,) or (steps, rows), NaN once a row has stopped.
        quantiles: between 0 and 1.
    """
    trace = trace_of(solution).clone()
    if not trace.shape[1]:
        return trace.new_full((len(trace), len(quantiles)), torch.nan)
    for step in range(1, len(trace)):
        trace[step] = torch.where(trace[step].isnan(), trace[step - 1], trace[step])
    return torch.nanquantile(trace, torch.tensor(quantiles, dtype=trace.dtype, device="cpu"), dim=1).T


def trace_of(solution: Solution | ArrayLike) -> Tensor:
    """(steps, rows) residuals of a solution, or of plain data, float64 on the CPU."""
    if isinstance(solution, Solution):
        return solution.trace.double().cpu()
    trace = torch.from_numpy(as_array(solution, np.float64))
    if trace.ndim not in (1, 2):
        raise ValueError(f"residuals of shape {tuple(trace.shape)} must be (steps,) or (steps, rows)")
    return trace if trace.ndim == 2 else trace[:, None]
