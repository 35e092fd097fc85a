"""Pictures of convergence. Needs matplotlib: `pip install 'implicit-networks[plots]'`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from solvers import Solution

from .diagnostics import residual_quantiles

try:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(
        "implicit.plots needs matplotlib: pip install 'implicit-networks[plots]' (or pip install matplotlib)"
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = ("-", "--", "-.", ":")
"""Line styles, cycled beside the colours so that curves stay apart in grey print."""


def plot_convergence(
    solutions: Solution | Mapping[str, Solution], *, rtol: float | None = None, ax: Axes | None = None
) -> Axes:
    """Relative residual against evaluations of f: the median row as a line, the 10 % to 90 % quantiles as a band.

    Args:
        solutions: one `Solution`, or several with their names.
        rtol: draws the tolerance.
        ax: where to draw; None: a new figure.

    Returns:
        The axes. A row that has stopped counts with its last residual.
    """
    ax = _axes(ax)
    named = {"": solutions} if isinstance(solutions, Solution) else solutions
    for number, (name, solution) in enumerate(named.items()):
        low, median, high = residual_quantiles(solution).numpy().T
        evaluations = np.arange(1, len(median) + 1)
        (line,) = ax.plot(evaluations, median, LINES[number % len(LINES)], marker=".", label=name or "median row")
        ax.fill_between(evaluations, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    if rtol is not None:
        ax.axhline(rtol, color="0.4", linewidth=1, linestyle=(0, (1, 1)), label=f"rtol = {rtol:g}")
    ax.set(yscale="log", xlabel="evaluations of f", ylabel="relative residual ‖f(z) − z‖ / ‖f(z)‖")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title("Convergence (median row, band: 10 % to 90 % of rows)")
    ax.legend()
    return ax


def plot_steps(solution: Solution | Mapping[str, Solution], *, ax: Axes | None = None) -> Axes:
    """How many rows had stopped after how many steps: the empirical distribution of `Solution.steps`, in percent."""
    ax = _axes(ax)
    named = {"": solution} if isinstance(solution, Solution) else solution
    for number, (name, one) in enumerate(named.items()):
        steps = np.sort(one.steps.cpu().numpy())
        share = 100 * np.arange(1, len(steps) + 1) / len(steps)
        ax.step(
            np.concatenate((steps[:1], steps)),
            np.concatenate(([0.0], share)),
            LINES[number % len(LINES)],
            where="post",
            label=name,
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="steps", ylabel="rows stopped (%)", ylim=(0, 102), title="Steps until a row stopped")
    if "" not in named:
        ax.legend()
    return ax


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(figsize=(6.4, 4.0), layout="constrained")[1] if ax is None else ax
