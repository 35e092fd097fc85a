"""What all plots share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
LINES = ("-", "--", "-.", ":")
"""Line styles, cycled along with the colours, so that curves stay apart in grey print."""
MARKERS = ("o", "s", "D", "^", "v", "P")
"""Markers, likewise."""

One = TypeVar("One")


Row = TypeVar("Row")


def as_rows(kind: type[Row], rows: Iterable[Row | Mapping[str, Any]]) -> list[Row]:
    """The rows as objects of this kind, made from dicts of their columns where needed."""
    return [kind(**row) if isinstance(row, Mapping) else row for row in rows]


def logarithmic(ax: Axes, *which: str) -> None:
    """Make axes, `x` or `y`, logarithmic if they have a number above 0 to show; else write that there is none."""
    for axis in which:
        data = [getattr(line, f"get_{axis}data")(orig=False) for line in ax.get_lines()]
        known = np.concatenate([np.ravel(values).astype(float) for values in data] or [np.empty(0)])
        if (np.isfinite(known) & (known > 0)).any():
            ax.set(**{f"{axis}scale": "log"})
        elif not ax.texts:
            ax.text(0.5, 0.5, "no finite number above 0", transform=ax.transAxes, ha="center", color="0.4")


class Named(Protocol):
    """A row of a table that belongs to a curve."""

    @property
    def name(self) -> str:
        """Name of the curve."""
        ...


NamedRow = TypeVar("NamedRow", bound=Named)


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure."""
    return plt.subplots(figsize=(6.4, 4.0), layout="constrained")[1] if ax is None else ax


def by_title(things: One | Mapping[str, One], title: str) -> Mapping[str, One]:
    """Several things by their names as they are, or a single one under this title."""
    return things if isinstance(things, Mapping) else {title: things}


def curves(rows: Iterable[NamedRow]) -> dict[str, list[NamedRow]]:
    """The rows of each name, in order of appearance."""
    named: dict[str, list[NamedRow]] = {}
    for row in rows:
        named.setdefault(row.name, []).append(row)
    if not named:
        raise ValueError("there are no rows to draw")
    return named


def looks(number: int, *, marker: str | None = None) -> dict[str, Any]:
    """Colour, line and marker of the curve with this number; `marker` in place of its own."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)] if marker is None else marker,
        "markersize": 5,
    }
