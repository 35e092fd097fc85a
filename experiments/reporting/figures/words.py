"""Figures in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def in_words(figure: Figure) -> str:
    """Title, axes and names of the curves, panel by panel; what a panel shares with the last is not repeated."""
    panels, axes_before, names_before = [], "", ""
    for ax in figure.axes:
        if ax.get_label() == "<colorbar>" or not (ax.axison or ax.get_title()):
            continue
        axes = " against ".join(label for label in (ax.get_ylabel(), ax.get_xlabel()) if label)
        names = ", ".join(dict.fromkeys(ax.get_legend_handles_labels()[1]))
        parts = [ax.get_title(), axes if axes != axes_before else "", names if names != names_before else ""]
        panels.append("; ".join(" ".join(part.split()) for part in parts if part))
        axes_before, names_before = axes, names
    return ". ".join(filter(None, [figure.get_suptitle(), *panels])).replace(r"\$", "$") + "."
