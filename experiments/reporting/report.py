"""The report of a comparison: one self-contained page, and its figures as files."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from ..failures import Failures, alike
from .figures import FIGURES, in_words, styled
from .table import columns

if TYPE_CHECKING:
    from .comparison import Comparison


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    caption: str
    alternative: str
    """What it shows, for who cannot see it."""
    width: int
    """In pixels of a page, as it was drawn."""
    data: str
    """PNG in base 64."""


@dataclass(frozen=True)
class Gap:
    """The place of a figure that could not be drawn."""

    caption: str
    error: str


def write_report(comparison: Comparison, folder: Path, failures: Failures) -> None:
    """Write `report.html` and the figures, `NAME.png`, into `folder`; what cannot be drawn is one of the failures."""
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


def _drawn(draw: Callable[[Comparison], Any], comparison: Comparison, caption: str, path: Path) -> Picture | None:
    """The figure in a file and for the page; None where the comparison has nothing to show."""
    path.unlink(missing_ok=True)  # of a report before this one
    with styled():
        figure = draw(comparison)
        if figure is None:
            return None
        figure.savefig(path, dpi=150)
        data = base64.b64encode(path.read_bytes()).decode()
        return Picture(caption, in_words(figure), round(100 * figure.get_figwidth()), data)


def page(comparison: Comparison, pictures: Sequence[Picture | Gap]) -> str:
    """The page, which needs nothing beside itself."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown = columns(comparison)
    return environment.get_template("report.html").render(
        task=comparison.task,
        settings=comparison.settings,
        rows=comparison.rows,
        table=[[show(row) for _, show in shown.values()] for row in comparison.rows],
        columns=[(heading, meaning) for heading, (meaning, _) in shown.items()],
        diagnosed=[row for row in comparison.rows if row.diagnosis],
        others=[row for row in comparison.rows if not row.diagnosis],
        failures=alike(comparison.failures),
        missing=comparison.missing,
        pictures=pictures,
    )
