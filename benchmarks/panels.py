"""Panels of the benchmarks' figures: curves and bars from the rows of a table, distinct in colour and in grey print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")  # figures go to files, whatever display there is
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from implicit.plots import COLOURS, LINES, MARKERS

from .report import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++")
STYLE = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8,
}


def panels(lines: int, columns: int, *, width: float = 6.2, height: float = 3.7) -> tuple[Figure, Sequence[Axes]]:
    """A figure and its axes, line by line."""
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        size = (width * columns, height * lines)
        figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    return figure, list(axes.flat)


def empty(ax: Axes, table: Table | None) -> bool:
    """Whether there is nothing to draw; then the panel says why."""
    if table is not None and table.rows:
        return False
    _say(ax, table.notes[0] if table is not None and table.notes else "not measured")
    return True


def _say(ax: Axes, why: str) -> None:
    ax.text(0.5, 0.5, why, ha="center", va="center", wrap=True, transform=ax.transAxes)
    ax.set_axis_off()


def number(cell: Cell) -> float:
    """The cell as a number; NaN, which leaves a gap, if it is none."""
    return float(cell) if isinstance(cell, (int, float)) else float("nan")


def curves(ax: Axes, series: Mapping[str, Mapping[float, float]], *, paired: bool = False, ticks: bool = True) -> None:
    """Draw one curve for each series, on logarithmic axes.

    With `paired`, neighbours share a colour and the second is hollow and dashed; with `ticks`, ticks mark the points.
    """
    for index, (name, points) in enumerate(series.items()):
        look, second = (index // 2, bool(index % 2)) if paired else (index, False)
        ax.plot(
            list(points),
            list(points.values()),
            color=COLOURS[look % len(COLOURS)],
            linestyle=("--" if second else "-") if paired else LINES[index % len(LINES)],
            marker=MARKERS[look % len(MARKERS)],
            markersize=5,
            markerfacecolor="none" if second else None,
            label=name,
        )
    ax.set(xscale="log", yscale="log")
    values = [value for points in series.values() for value in points.values() if value > 0]
    if values and max(values) < 300 * min(values):
        _plain(ax.yaxis)
    if ticks:
        marks = sorted({round(x) for points in series.values() for x in points})
        ax.set_xticks(marks, [str(mark) if mark < 1000 else f"$2^{{{mark.bit_length() - 1}}}$" for mark in marks])
        ax.minorticks_off()
    _legend(ax)


def bars(ax: Axes, groups: Mapping[str, Mapping[str, tuple[float, float, float]]], *, line: float | None = 1.0) -> None:
    """Draw horizontal bars of group → series → (value, least, largest), from the line or, without one, from 0.

    The line marks where neither side is ahead; the values are then ratios, on a logarithmic axis.
    """
    names = list(dict.fromkeys(series for group in groups.values() for series in group))
    if not names:
        _say(ax, "no peer is installed")
        return
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        for place, group in enumerate(groups.values()):
            if name not in group:
                continue
            value, least, largest = group[name]
            ax.barh(
                place + (index - (len(names) - 1) / 2) * height,
                value - (line or 0),
                height,
                left=line or 0,
                xerr=[[max(value - least, 0)], [max(largest - value, 0)]] if largest > least else None,
                color=COLOURS[index % len(COLOURS)],
                alpha=0.75,
                hatch=HATCHES[index % len(HATCHES)],
                edgecolor="black",
                linewidth=0.5,
                ecolor="black",
                capsize=2,
                label=name if place == next(i for i, g in enumerate(groups.values()) if name in g) else None,
            )
    ax.set_yticks(range(len(groups)), list(groups))
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    if line is not None:
        ax.axvline(line, color="black", linewidth=1)
        ax.set_xscale("log")
        _plain(ax.xaxis)
    if len(names) > 1:
        _legend(ax)


def _plain(axis: Axis) -> None:
    """Numbers rather than powers of ten on a logarithmic axis."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 4 * low else range(1, 10)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _legend(ax: Axes) -> None:
    """A legend beside the panel, where it hides nothing."""
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
