"""The report of a comparison: one self-contained page, and its figures as files."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import matplotlib.pyplot as plt

from .figures import FIGURES, STYLE, in_words
from .table import columns

if TYPE_CHECKING:
    from .results import Comparison


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


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write `report.html` and the figures, `NAME.png`, into `folder`."""
    pictures = []
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        for name, (caption, draw) in FIGURES.items():
            figure = draw(comparison)
            if figure is None:
                continue
            figure.savefig(folder / f"{name}.png", dpi=150)
            plt.close(figure)
            data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
            pictures.append(Picture(caption, in_words(figure), round(100 * figure.get_figwidth()), data))
    (folder / "report.html").write_text(page(comparison, pictures), encoding="utf-8")


def page(comparison: Comparison, pictures: list[Picture]) -> str:
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
        pictures=pictures,
    )
