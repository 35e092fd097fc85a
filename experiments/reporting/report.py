"""The report of a comparison: one self-contained page, and its figures as files."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from ..failures import Failures, alike
from .figures import FIGURES, in_words, literal, styled
from .table import columns, table_markdown
from .verdict import verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .comparison import Comparison


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    caption: str
    alternative: str
    """What it shows, in words, for readers who cannot see it."""
    width: int
    """Width in pixels of the page, as drawn."""
    data: str
    """PNG in base 64; empty: `drawing` is shown instead."""
    drawing: str = ""
    """SVG with all curves, for a reader to pick from."""
    curves: Sequence[Curve] = ()
    """The curves to pick from."""


@dataclass(frozen=True)
class Curve:
    """A curve that a reader may show or hide."""

    name: str
    colour: str
    shown: bool
    """Whether it is visible at first."""
    ids: Sequence[str]
    """Ids of its lines in the drawing."""


@dataclass(frozen=True)
class Gap:
    """The place of a figure that could not be drawn."""

    caption: str
    error: str


def write_report(comparison: Comparison, folder: Path, failures: Failures) -> None:
    """Write `report.html`, its `table.md` and its figures, `NAME.png`; what cannot be drawn is noted as a failure."""
    pictures: list[Picture | Gap] = []
    for name, (caption, draw) in FIGURES.items():
        before = len(failures.found)
        make = partial(_drawn, draw, comparison, caption, folder / f"{name}.png")
        picture = failures.attempt(f"the figure {name}", make)
        gaps = [Gap(caption, failure.error) for failure in failures.found[before:]]
        pictures += gaps if picture is None else [picture]

    def write() -> None:
        (folder / "report.html").write_text(page(comparison, pictures), encoding="utf-8")

    failures.attempt("the report", write)
    failures.attempt(
        "the table in Markdown", lambda: (folder / "table.md").write_text(table_markdown(comparison), encoding="utf-8")
    )


def _drawn(draw: Callable[[Comparison], Any], comparison: Comparison, caption: str, path: Path) -> Picture | None:
    """Draw the figure into a file and for the page; None if the comparison has nothing to show."""
    path.unlink(missing_ok=True)  # left by an earlier report
    with styled():
        figure = draw(literal(comparison))
        if figure is None:
            return None
        figure.savefig(path, dpi=150)
        words, width, curves = in_words(figure), round(100 * figure.get_figwidth()), _curves(figure)
        if curves:
            return Picture(caption, words, width, "", _drawing(figure), curves)
        return Picture(caption, words, width, base64.b64encode(path.read_bytes()).decode())


def _curves(figure: Figure) -> list[Curve]:
    """The curves of the figure whose lines have an id, each once for all its lines."""
    lines = [line for ax in figure.axes for line in ax.lines if line.get_gid()]
    names = dict.fromkeys(str(line.get_label()) for line in lines)
    found = []
    for name in names:
        own = [line for line in lines if line.get_label() == name]
        ids = [str(line.get_gid()) for line in own]
        found.append(Curve(name.replace(r"\$", "$"), str(own[0].get_color()), own[0].get_visible(), ids))
    return found


def _drawing(figure: Figure) -> str:
    """The figure as an element of a page, with all curves visible, letters as shapes and no legend."""
    for ax in figure.axes:
        for line in ax.lines:
            line.set_visible(True)
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def page(comparison: Comparison, pictures: Sequence[Picture | Gap]) -> str:
    """The page, self-contained."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown = columns(comparison)
    return environment.get_template("report.html").render(
        task=comparison.task,
        settings=comparison.settings,
        verdict=verdict(comparison),
        rows=comparison.ranked,
        table=[(comparison.judged(row), [show(row) for _, show in shown.values()]) for row in comparison.ranked],
        longest=max((len(row.name) for row in comparison.rows), default=0),
        columns=[(heading, meaning) for heading, (meaning, _) in shown.items()],
        diagnosed=[row for row in comparison.rows if row.diagnosis],
        others=[row for row in comparison.rows if not row.diagnosis],
        failures=alike(comparison.failures),
        missing=comparison.missing,
        pictures=pictures,
    )
