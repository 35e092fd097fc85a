"""A solution as a notebook shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from torch import Tensor

WIDTH, HEIGHT = 160, 36


def table(headings: Sequence[str], lines: Sequence[Sequence[str]], curves: Sequence[str] = ()) -> str:
    """An HTML table of plain text; `curves` holds one SVG element per line, shown in an extra cell."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in (*headings, *(["residuals"] if curves else [])))
    body = ""
    for number, line in enumerate(lines):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in line)
        body += f"<tr>{cells}{f'<td>{curves[number]}</td>' if curves else ''}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def sparkline(values: Tensor, title: str) -> str:
    """An SVG line through the logarithms of the positive finite values; empty if there are fewer than two."""
    points = [(step, math.log10(value)) for step, value in enumerate(values.tolist()) if 0 < value < math.inf]
    if len(points) < 2:
        return ""
    low, high = (edge(y for _, y in points) for edge in (min, max))
    across, up = (WIDTH - 4) / max(len(values) - 1, 1), (HEIGHT - 4) / ((high - low) or 1)
    path = " ".join(f"{2 + across * x:.1f},{HEIGHT - 2 - up * (y - low):.1f}" for x, y in points)
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )
