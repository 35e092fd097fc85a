"""The figure of what is measured on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .panels import bars, curves, empty, number, panels
from .report import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gpu(tables: Mapping[str, Table]) -> Figure:
    """A panel per solver, with the time of a step against the state, and one with the times of training steps."""
    figure, (*steps, training) = panels(2, 2)
    table = tables.get("steps")
    for ax, solver in zip(steps, ("Picard", "Anderson", "Broyden")):
        if empty(ax, table):
            continue
        assert table is not None
        found: dict[str, dict[float, float]] = {}
        for row in table.rows:
            if row["solver"] == solver:
                for name, column in ((str(row["by"]), "median"), ("f in a graph", "f in a graph"), ("bytes", "bytes")):
                    found.setdefault(name, {})[number(row["entries"])] = number(row[column])
        curves(ax, found, ticks=False)
        ax.set(xlabel="entries of the state", ylabel="µs a step", title=f"{solver}, f elementwise")
    if not empty(training, table := tables.get("training")):
        assert table is not None
        groups: dict[str, dict[str, tuple[float, float, float]]] = {}
        for row in table.rows:
            label, value = f"{row['solver']}, {row['by']}", (number(row[key]) for key in ("median", "least", "largest"))
            median, least, largest = value
            groups.setdefault(label, {})[str(row["cell"])] = (median, least, largest)
        bars(training, groups, line=None)
        training.set(xlabel="ms", title="A forward and backward pass to 1e-4")
    return figure
