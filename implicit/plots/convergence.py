"""Residuals against steps, and how many steps rows take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from solvers import Solution

from ..diagnostics import residual_quantiles
from .style import axes_or_new, by_title, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_convergence(
    solutions: Solution | Mapping[str, Solution],
    *,
    rtol: float | None = None,
    worst: int = 0,
    evaluations: bool = False,
    seconds: float | Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Relative residual against steps, `z0` the first: the median row as a line, 10 % to 90 % quantiles as a band.

    Args:
        solutions: one `Solution`, or several with their names.
        rtol: draws the tolerance.
        worst: so many rows of the largest residuals at the end, as thin lines of their own.
        evaluations: of f a row on the horizontal axis, in place of steps; what a solver spends beyond one a step
            (`NewtonKrylov`) is spread evenly over the steps.
        seconds: that the solves took, one number for each name; on the horizontal axis, spread evenly over the steps.
        ax: where to draw; None: a new figure.

    Returns:
        The axes. A row that has stopped counts with its last residual.
    """
    if evaluations and seconds is not None:
        raise ValueError("plot_convergence: evaluations and seconds are two axes: choose one")
    if not isinstance(worst, int) or isinstance(worst, bool) or worst < 0:
        raise ValueError(f"plot_convergence: worst={worst!r} must be a number of rows of at least 0")
    ax = axes_or_new(ax)
    named = by_title(solutions, "median row")
    times = None if seconds is None else _times(named, seconds)
    for number, (name, solution) in enumerate(named.items()):
        low, median, high = residual_quantiles(solution).numpy().T
        price = 1.0
        if times is not None:
            price = times[name] / max(len(median), 1)
        elif evaluations:
            price = float(solution.evaluations.sum() / solution.steps.sum().clamp_min(1))
        at = price * np.arange(1, len(median) + 1)
        (line,) = ax.plot(at, median, **looks(number, marker="."), label=name)
        ax.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        hardest = solution.residual.double().nan_to_num(np.inf).argsort(descending=True)[:worst].tolist()
        for order, row in enumerate(hardest):
            label = "worst row" if len(hardest) == 1 else f"worst {len(hardest)} rows"
            label = label if named is not solutions else f"{name}: {label}"
            residuals = solution.trace[:, row].double().cpu()
            ax.plot(at, residuals, color=line.get_color(), linewidth=0.6, alpha=0.8, label=None if order else label)
    if rtol is not None:
        ax.axhline(rtol, color="0.4", linewidth=1, linestyle=(0, (1, 1)), label=f"rtol = {rtol:g}")
    ax.set(yscale="log", ylabel="relative residual ‖f(z) − z‖ / ‖f(z)‖")
    if times is None:
        ax.set_xlabel("evaluations of f a row" if evaluations else "steps")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        ax.set_xlabel("seconds")
    ax.set_title("Convergence (median row, band: 10 % to 90 % of rows)")
    ax.legend()
    return ax


def _times(named: Mapping[str, Solution], seconds: float | Mapping[str, float]) -> Mapping[str, float]:
    times = seconds if isinstance(seconds, Mapping) else dict.fromkeys(named, seconds)
    missing = [name for name in named if name not in times]
    if missing or (len(named) > 1 and times is not seconds):
        raise ValueError(f"plot_convergence: seconds must be a dict with a number for each of {', '.join(named)}")
    return times


def plot_steps(solution: Solution | Mapping[str, Solution], *, histogram: bool = False, ax: Axes | None = None) -> Axes:
    """How many rows had stopped after how many steps: the empirical distribution of `Solution.steps`, in percent.

    Args:
        solution: one, or several with their names.
        histogram: how many stopped at just so many steps, in place of up to.
        ax: where to draw; None: a new figure.
    """
    ax = axes_or_new(ax)
    named = by_title(solution, "rows")
    counts = {name: np.sort(one.steps.cpu().numpy()) for name, one in named.items()}
    longest = max((int(steps.max(initial=1)) for steps in counts.values()), default=1)
    edges = np.arange(0.5, longest + 1 + longest // 40, 1 + longest // 40).tolist()  # whole steps, some 40 bars
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
