"""How figures look, and what several of them read from a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # figures go to files, whatever display there is
import matplotlib.pyplot as plt
from cycler import cycler

from implicit.plots import COLOURS, LINES, MARKERS

from ...tasks.goals import Goal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..comparison import Comparison, Row

STYLE = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 110,
    "font.size": 9,
    "svg.hashsalt": "report",  # the same numbers make the same page
}


@contextmanager
def styled() -> Iterator[None]:
    """Give all figures made within the same style, and close them at the end, even on an error; leave others alone."""
    before = set(plt.get_fignums())
    try:
        with plt.rc_context(STYLE):  # type: ignore[arg-type]
            yield
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def literal(comparison: Comparison) -> Comparison:
    """The same comparison with dollar signs in names escaped, so that Matplotlib sees no formula in them."""

    def named(row: Row) -> Row:
        baseline = row.contestant.baseline
        contestant = replace(row.contestant, baseline=None if baseline is None else baseline.replace("$", r"\$"))
        return replace(row, name=row.name.replace("$", r"\$"), contestant=contestant)

    return replace(comparison, rows=[named(row) for row in comparison.rows])


def score_label(goal: Goal) -> str:
    """The score with its unit."""
    return f"{goal.score} ({goal.unit})" if goal.unit else goal.score


def colour_of(number: int) -> str:
    """The colour of the row with this number."""
    return COLOURS[number % len(COLOURS)]


def draw_scores(ax: Axes, number: int, name: str, at: Any, scores: NDArray[Any]) -> None:
    """Draw the scores (seeds, points) of the row with this number: their mean, and a band from least to largest."""
    colour, line = colour_of(number), LINES[number % len(LINES)]
    ax.plot(at, scores.mean(axis=0), line, color=colour, marker=MARKERS[number % len(MARKERS)], label=name)
    ax.fill_between(at, scores.min(axis=0), scores.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def curve_of(row: Row, name: str) -> Any:
    """(seeds, epochs) values of a training curve."""
    return np.array([[epoch[name] for epoch in run.training.curves] for run in row.runs])


def trained(comparison: Comparison) -> list[tuple[int, Row]]:
    """The rows that had something to learn, with their numbers."""
    return [(number, row) for number, row in enumerate(comparison.rows) if row.trained]


def panels(count: int, *, columns: int, size: tuple[float, float], shared: bool = False) -> tuple[Figure, Any]:
    """`count` panels of this size in inches, in even lines of at most `columns`; they may share their axes."""
    lines = -(-count // columns)
    columns = -(-count // lines)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(size[0] * columns, size[1] * lines),
        layout="constrained",
        squeeze=False,
        sharex=shared,
        sharey=shared,
    )
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, axes
