"""Rows of a table that a notebook shows as one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from solvers.pages import table


class Row(Protocol):
    """A line: its columns by name."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words."""
        ...


Line = TypeVar("Line", bound=Row)


class Table(list[Line]):
    """A list of rows; `pandas.DataFrame(row.to_dict() for row in rows)` is a data frame."""

    def _repr_html_(self) -> str:
        lines = [row.to_dict() for row in self]
        if not lines:
            return "<p>none</p>"
        return table(list(lines[0]), [[shown(value) for value in line.values()] for line in lines])


def summary(columns: Mapping[str, Sequence[float]]) -> str:
    """An HTML table of the least, the median and the largest of each column, what is NaN left out."""
    lines = []
    for name, values in columns.items():
        known = [value for value in values if not math.isnan(value)]
        edges = [min(known), statistics.median(known), max(known)] if known else [math.nan] * 3
        lines.append([name.replace("_", " "), *map(shown, edges)])
    return table(["over the rows", "least", "median", "largest"], lines)


def shown(value: Any) -> str:
    """Three digits of a number."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
