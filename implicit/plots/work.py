"""What precision costs, for solvers and for gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import LogLocator, NullFormatter

from ..diagnostics import GradientError, Work
from ..diagnostics.arrays import as_array
from .style import as_rows, axes_or_new, curves, logarithmic, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


def plot_work_precision(
    rows: Iterable[Work | Mapping[str, Any]], *, seconds: bool = False, ax: Axes | None = None
) -> Axes:
    """The work that each solver takes to reach a residual, from the rows of `diagnostics.compare_solvers`.

    Hollow markers: not every row of the batch converged.

    Args:
        rows: one for each solver and tolerance, or their columns as dicts.
        seconds: whether the vertical axis shows seconds instead of evaluations of f.
        ax: where to draw; None: a new figure.
    """
    ax = axes_or_new(ax)
    for number, (name, its) in enumerate(curves(as_rows(Work, rows)).items()):
        look = looks(number)
        residuals = as_array([row.residual for row in its])
        work = as_array([row.seconds if seconds else row.evaluations for row in its])
        ax.plot(residuals, work, **look, label=name)
        failed = [(x, y) for row, x, y in zip(its, residuals, work, strict=True) if row.converged < 1]
        if failed:
            ax.plot(*zip(*failed, strict=True), **(look | {"linestyle": ""}), markerfacecolor="white")
    ax.set(xlabel="largest relative residual reached")
    logarithmic(ax, "x", "y")
    ax.invert_xaxis()
    ax.set_ylabel("seconds" if seconds else "evaluations of f per row")
    if not seconds and ax.get_yscale() == "log":
        _plain_ticks(ax.yaxis)
    ax.set_title("Work against precision (hollow: not all rows converged)")
    ax.legend()
    return ax


def plot_gradient_error(
    rows: Iterable[GradientError | Mapping[str, Any]], *, seconds: bool = False, ax: Axes | None = None
) -> Axes:
    """The relative error of each gradient policy, from the rows of `diagnostics.compare_gradients`.

    Args:
        rows: one for each policy and tolerance, or their columns as dicts.
        seconds: whether the horizontal axis shows seconds, forward and backward, instead of the forward tolerance.
        ax: where to draw; None: a new figure.
    """
    ax = axes_or_new(ax)
    for number, (name, its) in enumerate(curves(as_rows(GradientError, rows)).items()):
        x = as_array([row.seconds if seconds else row.rtol for row in its])
        ax.plot(x, as_array([row.relative_error for row in its]), **looks(number), label=name)
    ax.set(ylabel="relative error of the gradient ‖g − g*‖ / ‖g*‖")
    logarithmic(ax, "x", "y")
    if seconds:
        ax.set_xlabel("seconds, forward and backward")
        if ax.get_xscale() == "log":
            _plain_ticks(ax.xaxis)
    else:
        ax.set_xlabel("rtol of the forward solve")
        ax.invert_xaxis()
    ax.set_title("Gradients beside the exact one")
    if len(ax.get_lines()) > 4:  # inside, this many names would cover curves
        ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    else:
        ax.legend()
    return ax


def _plain_ticks(axis: Axis) -> None:
    """Mark 1, 2, 3, 5 of each power of ten in plain numbers, for an axis that spans little more than one."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
