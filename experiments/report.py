"""The report of a comparison: one self-contained page, and its figures as files."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import matplotlib.pyplot as plt

from .figures import FIGURES, STYLE
from .table import columns

if TYPE_CHECKING:
    from .results import Comparison


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write `report.html` and the figures, `NAME.png`, into `folder`."""
    pictures, shown = [], columns(comparison)
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        for name, (caption, draw) in FIGURES.items():
            figure = draw(comparison)
            if figure is None:
                continue
            figure.savefig(folder / f"{name}.png", dpi=150)
            plt.close(figure)
            data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
            pictures.append((caption, data))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        task=comparison.task,
        settings=comparison.settings,
        rows=comparison.rows,
        table=[[show(row) for _, show in shown.values()] for row in comparison.rows],
        columns=[(heading, meaning) for heading, (meaning, _) in shown.items()],
        pictures=pictures,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
