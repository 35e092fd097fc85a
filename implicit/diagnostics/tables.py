"""Lists of rows that a notebook shows as a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from solvers.pages import table

SHOWN = 20
"""Rows of a table that a page or a terminal shows."""
WIDEST = 120
"""Largest width of a line in a terminal, in characters."""


class Line:
    """Base of dataclasses whose instances are lines of a table: the fields are the columns."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers and words."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def _repr_html_(self) -> str:
        return Table([self])._repr_html_()


One = TypeVar("One", bound=Line)


class Table(list[One]):
    """A list of rows; `pandas.DataFrame(row.to_dict() for row in rows)` is a data frame."""

    def __repr__(self) -> str:
        rows = ",\n ".join(map(repr, self[:SHOWN]))
        return f"[{rows}{self._more(', ')}]"

    def __str__(self) -> str:
        """In columns, with numbers to three digits; if that is too wide, each row's own text on a line."""
        cells = [[shown(value) for value in row.to_dict().values()] for row in self[:SHOWN]]
        if not cells:
            return "[]"
        columns = list(zip(self[0].to_dict(), *cells, strict=True))
        widths = [max(map(len, column)) for column in columns]
        if sum(widths) + 2 * len(widths) > WIDEST:
            lines = [str(row) for row in self[:SHOWN]]
        else:
            padded = [[cell.rjust(width) for cell in column] for column, width in zip(columns, widths, strict=True)]
            lines = ["  ".join(line) for line in zip(*padded, strict=True)]
        return "\n".join((*lines, *filter(None, [self._more()])))

    def _repr_html_(self) -> str:
        lines = [row.to_dict() for row in self[:SHOWN]]
        if not lines:
            return "<p>none</p>"
        page = table(list(lines[0]), [[shown(value) for value in line.values()] for line in lines])
        return page + (f"<p>{self._more()}</p>" if len(self) > SHOWN else "")

    def _more(self, before: str = "") -> str:
        return f"{before}… and {len(self) - SHOWN} more rows" if len(self) > SHOWN else ""


def summary(columns: Mapping[str, Sequence[float]]) -> str:
    """An HTML table of the least, the median and the largest value of each column, without NaN."""
    lines = []
    for name, values in columns.items():
        known = [value for value in values if not math.isnan(value)]
        edges = [min(known), statistics.median(known), max(known)] if known else [math.nan] * 3
        lines.append([name.replace("_", " "), *map(shown, edges)])
    return table(["over the rows", "least", "median", "largest"], lines)


def shown(value: Any) -> str:
    """A value as text, floats to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
