"""Tables as text, and a line that says how far a run has come."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

Cell = float | int | str | None

WIDTH = 118
LONG = 11


@dataclass(frozen=True)
class Table:
    """One printed table; its rows go to the JSON file as they are."""

    title: str
    """What was measured, with its unit."""
    rows: list[dict[str, Cell]]
    """Cells by column; None shows as an empty cell."""
    notes: list[str] = field(default_factory=list)
    """How to read it, and what was left out."""

    def __str__(self) -> str:
        notes = [line for note in self.notes for line in textwrap.wrap(note, WIDTH)]
        return "\n  ".join((self.title, *(self._lines() if self.rows else ()), *notes))

    def _lines(self) -> Iterator[str]:
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        # long headings take two lines
        heads = [column.rsplit(" ", 1) if len(column) > LONG and " " in column else ["", column] for column in columns]
        lines = [*zip(*heads), *([shown(row.get(column)) for column in columns] for row in self.rows)]
        widths = [max(map(len, cells)) for cells in zip(*lines)]
        lines.insert(2, ["─" * width for width in widths])
        numeric = [any(isinstance(row.get(column), (int, float)) for row in self.rows) for column in columns]
        for line in lines if any(lines[0]) else lines[1:]:
            aligned = (
                format(cell, f"{'>' if right else '<'}{width}") for cell, width, right in zip(line, widths, numeric)
            )
            yield "  ".join(aligned).rstrip()


def shown(cell: Cell) -> str:
    """The cell as text: about three digits of a number, or all of its whole part if that has more."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 100:
        return f"{cell:,.0f}"
    if abs(cell) >= 10:
        return f"{cell:.1f}"
    return f"{cell:.2f}" if abs(cell) >= 0.005 or cell == 0 else f"{cell:.1e}"


class Progress:
    """Says on stderr what is being measured, so that the tables on stdout stay clean."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __call__(self, doing: str) -> None:
        line = f"[{self.seconds:4.0f} s] {doing}"
        # a terminal keeps one line, a file gets them all
        self.clear()
        print(line, end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Erase the line before something else is printed."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.start
