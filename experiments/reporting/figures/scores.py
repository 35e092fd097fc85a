"""Figures of the scores: against the baseline, and against what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from .style import COLOURS, colour_of, score_label, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison import Comparison, Row


def differences(comparison: Comparison) -> Figure | None:
    """Each network's score less the baseline's, in pairs of one seed, with the 95 % interval."""
    found = [
        (row.name if comparison.baseline else f"{row.name} – {row.contestant.baseline}", comparison.difference(row))
        for row in comparison.rows
    ]
    shown = [
        (name, difference) for name, difference in found if difference is not None and math.isfinite(difference.high)
    ]
    if not shown:
        return None
    goal = comparison.task.goal
    figure, ax = plt.subplots(figsize=(8, 1.2 + 0.26 * len(shown)), layout="constrained")
    for number, (_, difference) in enumerate(shown):
        mean, low, high = (goal.scale * value for value in vars(difference).values())
        better = (mean > 0) == goal.higher_is_better
        colour = "#555555" if not difference.decided else COLOURS[0] if better else COLOURS[1]
        ax.errorbar(
            mean,
            number,
            xerr=[[mean - low], [high - mean]],
            fmt="o" if difference.decided else "D",
            color=colour,
            capsize=3,
        )
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(shown)), [name for name, _ in shown])
    ax.invert_yaxis()
    direction = "right" if goal.higher_is_better else "left"
    ax.set(
        xlabel=f"{score_label(goal)} less that of {comparison.baseline or 'its baseline'} ({direction} is better)",
        title="Mean paired difference, 95 % interval (diamonds: undecided)",
    )
    return figure


def cost(comparison: Comparison) -> Figure | None:
    """The score against FLOPs, seconds and memory."""
    if not trained(comparison):
        return None
    goal = comparison.task.goal
    height = max(3.8, 0.6 + 0.21 * len(comparison.rows))  # of the legend
    figure, axes = plt.subplots(1, 3, figsize=(11, height), layout="constrained", sharey=True)
    figures: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("MFLOPs a sample, forward", lambda row: row.mean("flops") / 1e6),
        ("seconds an epoch", lambda row: row.seconds_per_epoch()),
        (f"activations saved (MiB, batch of {comparison.task.batch})", lambda row: row.mean("saved_bytes") / 2**20),
    )
    for ax, (label, value) in zip(axes, figures, strict=True):
        for number, row in trained(comparison):
            ax.errorbar(
                value(row),
                goal.scale * row.mean("score"),
                goal.scale * row.deviation("score"),
                fmt="osD^vPX"[number // len(COLOURS) % 7],
                color=colour_of(number),
                capsize=3,
                label=row.name,
            )
        ax.set(xlabel=label, xscale="log")
        low, high = ax.get_xlim()
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else range(1, 10)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel(f"test {score_label(goal)}")
    figure.suptitle(f"What {goal.score} costs (bars: standard deviation over the seeds)")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure
