"""Residuals against steps, and the steps that rows take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from solvers import Solution

from ..diagnostics.arrays import as_array
from ..diagnostics.residuals import residual_quantiles, trace_of
from .style import axes_or_new, by_title, logarithmic, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_convergence(
    solutions: Solution | ArrayLike | Mapping[str, Solution | ArrayLike],
    *,
    rtol: float | None = None,
    worst: int = 0,
    evaluations: bool = False,
    seconds: float | Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Relative residual against steps, `z0` the first: the median row as a line, 10 % to 90 % quantiles as a band.

    Args:
        solutions: one `Solution`, or several with their names; or plain residuals, (steps,) or (steps, rows).
        rtol: draws the tolerance.
        worst: how many of the slowest rows to draw as thin lines of their own.
        evaluations: whether the horizontal axis shows evaluations of f per row instead of steps; those beyond one per
            step (`NewtonKrylov`) are spread evenly over the steps.
        seconds: duration of the solves, one number for each name; the horizontal axis then shows seconds, spread evenly
            over the steps.
        ax: where to draw; None: a new figure.

    Returns:
        The axes. A row that has stopped keeps its last residual.
    """
    if evaluations and seconds is not None:
        raise ValueError("plot_convergence: evaluations and seconds exclude each other: pass one of them")
    if not isinstance(worst, int) or isinstance(worst, bool) or worst < 0:
        raise ValueError(f"plot_convergence: worst={worst!r} must be a number of rows of at least 0")
    ax = axes_or_new(ax)
    named: Mapping[str, Solution | ArrayLike] = by_title(solutions, "median row")
    times = None if seconds is None else _times(named, seconds)
    for number, (name, solution) in enumerate(named.items()):
        low, median, high = residual_quantiles(solution).numpy().T
        price = 1.0
        if times is not None:
            price = as_array(times[name]).item() / max(len(median), 1)
        elif evaluations:
            if not isinstance(solution, Solution):
                raise ValueError(
                    "plot_convergence: evaluations=True needs a Solution: plain residuals do not include them"
                )
            price = float(solution.evaluations.sum() / solution.steps.sum().clamp_min(1))
        at = price * np.arange(1, len(median) + 1)
        (line,) = ax.plot(at, median, **looks(number), markevery=max(1, len(median) // 10), label=name)
        ax.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        for order, residuals in enumerate(_worst(solution, worst)):
            label = "worst row" if worst == 1 else f"worst {worst} rows"
            label = label if named is not solutions else f"{name}: {label}"
            ax.plot(at, residuals, color=line.get_color(), linewidth=0.6, alpha=0.8, label=None if order else label)
    if rtol is not None:
        level = as_array(rtol).item()
        ax.axhline(level, color="0.4", linewidth=1, linestyle=(0, (1, 1)), label=f"rtol = {level:g}")
    logarithmic(ax, "y")
    ax.set(ylabel="relative residual ‖f(z) − z‖ / ‖f(z)‖")
    if times is None:
        ax.set_xlabel("evaluations of f per row" if evaluations else "steps")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        ax.set_xlabel("seconds")
    ax.set_title("Convergence (median row, band: 10 % to 90 % of rows)")
    ax.legend()
    return ax


def _worst(solution: Solution | ArrayLike, count: int) -> list[NDArray[np.float64]]:
    """Residuals of the rows that took longest, ties by the largest last residual; rows without any are left out."""
    trace = trace_of(solution).numpy()
    if not trace.size:
        return []
    finite = np.isfinite(trace)
    steps = np.where(finite.any(axis=0), len(trace) - finite[::-1].argmax(axis=0), 0)
    last = np.array([trace[step - 1, row] if step else 0.0 for row, step in enumerate(steps)])
    order = np.lexsort((-last, -steps))[:count]
    return [trace[:, row] for row in order if steps[row]]


def _times(named: Mapping[str, object], seconds: float | Mapping[str, float]) -> Mapping[str, float]:
    times = seconds if isinstance(seconds, Mapping) else dict.fromkeys(named, seconds)
    missing = [name for name in named if name not in times]
    if missing or (len(named) > 1 and times is not seconds):
        raise ValueError(f"plot_convergence: seconds must be a dict with a number for each of {', '.join(named)}")
    return times


def plot_steps(
    solution: Solution | ArrayLike | Mapping[str, Solution | ArrayLike],
    *,
    histogram: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """The share of rows that had stopped after k steps: the empirical distribution of `Solution.steps`, in percent.

    Args:
        solution: one, or several with their names; or plain numbers of steps, one per row.
        histogram: the share that stopped at exactly k steps, instead of up to k.
        ax: where to draw; None: a new figure.
    """
    ax = axes_or_new(ax)
    named: Mapping[str, Solution | ArrayLike] = by_title(solution, "rows")
    counts = {
        name: np.sort(one.steps.cpu().numpy() if isinstance(one, Solution) else as_array(one))
        for name, one in named.items()
    }
    longest = max((int(steps.max(initial=1)) for steps in counts.values()), default=1)
    edges = np.arange(0.5, longest + 1 + longest // 40, 1 + longest // 40).tolist()  # whole steps, about 40 bars
    for number, (name, steps) in enumerate(counts.items()):
        if histogram:
            weights = np.full(len(steps), 100 / max(len(steps), 1))
            look = {key: looks(number)[key] for key in ("color", "linestyle")}
            ax.hist(steps, edges, weights=weights, histtype="step", linewidth=1.5, label=name, **look)
            continue
        share = 100 * np.arange(1, len(steps) + 1) / len(steps)
        at, reached = np.concatenate((steps[:1], steps)), np.concatenate((0 * share[:1], share))
        ax.step(at, reached, **looks(number, marker=""), where="post", label=name)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="steps", ylabel="rows stopped (%)", title="Steps until a row stopped")
    if not histogram:
        ax.set_ylim(0, 102)
    if named is solution:
        ax.legend()
    return ax
