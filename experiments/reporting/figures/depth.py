"""Figures of seconds against depth."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

from implicit.plots import COLOURS, LINES, MARKERS

from ...measuring.depth_times import TOKENS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def times_against_depth(records: list[dict[str, Any]], device: str) -> Figure:
    """Median seconds, a row of panels for each width and batch, a column for inference and for training."""
    settings = list(dict.fromkeys((record["width"], record["batch"]) for record in records))
    kinds = ("inference", "training step")
    size: dict[str, Any] = {"figsize": (9.5, 0.6 + 2.9 * len(settings)), "layout": "constrained"}
    figure, axes = plt.subplots(len(settings), len(kinds), squeeze=False, sharex=True, **size)
    for line, (width, batch) in zip(axes, settings, strict=True):
        chosen = [record for record in records if (record["width"], record["batch"]) == (width, batch)]
        for ax, kind in zip(line, kinds, strict=True):
            names = list(dict.fromkeys(name for record in chosen for name in record["seconds"][kind]))
            for number, name in enumerate(names):
                times = {r["depth"]: r["seconds"][kind][name] for r in chosen if name in r["seconds"][kind]}
                middle = [1e3 * statistics.median(values) for values in times.values()]
                low, high = ([1e3 * edge(values) for values in times.values()] for edge in (min, max))
                colour = COLOURS[number % len(COLOURS)]
                style, mark = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
                ax.plot(list(times), middle, style, marker=mark, markersize=4, color=colour, label=name)
                ax.fill_between(list(times), low, high, color=colour, alpha=0.12, linewidth=0)
            ax.set(xscale="log", yscale="log", title=f"{kind}, width {width}, batch {batch}", ylabel="ms")
            depths = sorted({record["depth"] for record in chosen})
            ax.set_xticks(depths, [str(depth) for depth in depths])
            ax.minorticks_off()
    for ax in axes[-1]:
        ax.set_xlabel("layers")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle(f"Seconds against depth, transformer blocks on {TOKENS} tokens, {device} (bands: all repeats)")
    return figure
