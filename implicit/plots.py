"""Pictures of convergence. Needs matplotlib: `pip install 'implicit-networks[plots]'`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from solvers import Solution

from .diagnostics import GradientError, Work, residual_quantiles

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
MARKERS = ("o", "s", "D", "^", "v", "P")
"""Likewise."""


def plot_convergence(
    solutions: Solution | Mapping[str, Solution], *, rtol: float | None = None, ax: Axes | None = None
) -> Axes:
    """Relative residual against steps, `z0` the first: the median row as a line, 10 % to 90 % quantiles as a band.

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
        steps = np.arange(1, len(median) + 1)
        (line,) = ax.plot(steps, median, LINES[number % len(LINES)], marker=".", label=name or "median row")
        ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    if rtol is not None:
        ax.axhline(rtol, color="0.4", linewidth=1, linestyle=(0, (1, 1)), label=f"rtol = {rtol:g}")
    ax.set(yscale="log", xlabel="steps", ylabel="relative residual ‖f(z) − z‖ / ‖f(z)‖")
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


def plot_eigenvalues(values: ArrayLike | Mapping[str, ArrayLike], *, ax: Axes | None = None) -> Axes:
    """Eigenvalues in the complex plane and the unit circle, outside which plain iteration does not converge.

    Args:
        values: what `diagnostics.eigenvalues` returns, or any complex numbers; several with their names.
        ax: where to draw; None: a new figure.
    """
    ax = _axes(ax)
    angles = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(angles), np.sin(angles), color="0.4", linewidth=1, linestyle=LINES[1], label="unit circle")
    named = values if isinstance(values, Mapping) else {"eigenvalues": values}
    for number, (name, one) in enumerate(named.items()):
        points = np.asarray(one).ravel()
        outside = int((np.abs(points) > 1).sum())
        label = f"{name}: largest modulus {np.abs(points).max(initial=0):.3g}, {outside} of {points.size} outside"
        ax.plot(points.real, points.imag, MARKERS[number % len(MARKERS)], markersize=4, alpha=0.7, label=label)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xlabel="real part", ylabel="imaginary part", title="Eigenvalues of the Jacobian ∂f/∂z")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return ax


def plot_work_precision(rows: Iterable[Work], *, seconds: bool = False, ax: Axes | None = None) -> Axes:
    """The work that each solver takes to reach a residual, of the rows of `diagnostics.compare_solvers`.

    Hollow markers: not every row of the batch converged.

    Args:
        rows: one for each solver and tolerance.
        seconds: on the vertical axis, in place of evaluations of f.
        ax: where to draw; None: a new figure.
    """
    ax = _axes(ax)
    for number, (name, its) in enumerate(_by_name(rows).items()):
        residuals = [row.residual for row in its]
        work = [row.seconds if seconds else row.evaluations for row in its]
        (line,) = ax.plot(residuals, work, LINES[number % len(LINES)], label=name)
        for row, x, y in zip(its, residuals, work, strict=True):
            face = line.get_color() if row.converged == 1 else "none"
            ax.plot(x, y, MARKERS[number % len(MARKERS)], color=line.get_color(), markerfacecolor=face, markersize=5)
    ax.set(xscale="log", yscale="log", xlabel="largest relative residual reached")
    ax.invert_xaxis()
    ax.set_ylabel("seconds" if seconds else "evaluations of f a row")
    ax.set_title("Work against precision (hollow: not all rows converged)")
    ax.legend()
    return ax


def plot_gradient_error(rows: Iterable[GradientError], *, seconds: bool = False, ax: Axes | None = None) -> Axes:
    """The relative error of each gradient policy, of the rows of `diagnostics.compare_gradients`.

    Args:
        rows: one for each policy and tolerance.
        seconds: of a forward and backward pass on the horizontal axis, in place of the tolerance of the forward solve.
        ax: where to draw; None: a new figure.
    """
    ax = _axes(ax)
    for number, (name, its) in enumerate(_by_name(rows).items()):
        x = [row.seconds if seconds else row.rtol for row in its]
        errors = [row.relative_error for row in its]
        style = LINES[number % len(LINES)] + MARKERS[number % len(MARKERS)]
        ax.plot(x, errors, style, markersize=5, label=name)
    ax.set(xscale="log", yscale="log", ylabel="relative error of the gradient ‖g − g*‖ / ‖g*‖")
    if seconds:
        ax.set_xlabel("seconds, forward and backward")
    else:
        ax.set_xlabel("rtol of the forward solve")
        ax.invert_xaxis()
    ax.set_title("Gradients beside the exact one")
    ax.legend()
    return ax


Named = TypeVar("Named", Work, GradientError)


def _by_name(rows: Iterable[Named]) -> dict[str, list[Named]]:
    """In order of appearance."""
    named: dict[str, list[Named]] = {}
    for row in rows:
        named.setdefault(row.name, []).append(row)
    if not named:
        raise ValueError("there are no rows to draw")
    return named


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(figsize=(6.4, 4.0), layout="constrained")[1] if ax is None else ax
