"""Figures of the scores: against the baseline, and against what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from implicit.plots import COLOURS, MARKERS

from ...tasks.goals import Classification, ExactMatch, Goal
from .labels import name_points
from .style import score_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison import Comparison, Row

TICKS = {300: (1,), 20: (1, 3), 4: (1, 2, 5), 0: (1, 2, 3, 4, 5, 6, 8)}
"""Ratio of an axis's ends, beyond which it has ticks at these multiples of the powers of ten."""
MANY = 9
"""From this many networks on, only the baseline and those that none beats in both score and cost are named."""


def differences(comparison: Comparison) -> Figure | None:
    """Each network's score minus the baseline's, paired by seed, with the 95 % interval; the best on top."""
    shown = [
        (row, difference)
        for row in comparison.ranked
        if (difference := comparison.difference(row)) is not None and math.isfinite(difference.high - difference.low)
    ]
    if not shown:
        return None
    goal = comparison.task.goal
    figure, ax = plt.subplots(figsize=(8, 1.3 + 0.28 * len(shown)), layout="constrained")
    looks = {"better": ("o", COLOURS[0]), "worse": ("s", COLOURS[1]), "undecided": ("D", "#777777")}
    for kind, (marker, colour) in looks.items():
        rows = [(place, found) for place, (row, found) in enumerate(shown) if comparison.judged(row) == kind]
        if rows:
            means = [goal.scale * found.mean for _, found in rows]
            half = [goal.scale * (found.high - found.low) / 2 for _, found in rows]
            ax.errorbar(
                means,
                [place for place, _ in rows],
                xerr=half,
                fmt=marker,
                color=colour,
                capsize=3,
                label=kind,
                markersize=5,
            )
    ax.axvline(0, color="black", linewidth=0.8)
    names = [row.name if comparison.baseline else f"{row.name} – {row.contestant.baseline}" for row, _ in shown]
    ax.set_yticks(range(len(shown)), names)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    direction = "right" if goal.higher_is_better else "left"
    ax.set(
        xlabel=f"{score_label(goal)} minus that of {comparison.baseline or 'its baseline'} ({direction} is better)",
        title="Mean paired difference, 95 % interval",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def cost(comparison: Comparison) -> Figure | None:
    """The score against FLOPs, seconds and memory; a cost that hardly differs is left out."""
    goal = comparison.task.goal
    rows = [row for row in comparison.rows if row.trained and math.isfinite(row.mean("score"))]
    costs: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("MFLOPs per sample, forward", lambda row: row.mean("flops") / 1e6),
        ("seconds per epoch", lambda row: row.seconds_per_epoch()),
        (f"activations saved (MiB, batch of {comparison.task.batch})", lambda row: row.mean("saved_bytes") / 2**20),
    )
    values = {label: [value(row) for row in rows] for label, value in costs}
    told = {
        label: found
        for label, found in values.items()
        if len(rows) > 1 and min(found) > 0 and math.isfinite(sum(found)) and max(found) > 1.1 * min(found)
    }
    if not told:
        return None
    figure, axes = plt.subplots(
        1, len(told), figsize=(1 + 3.9 * len(told), 4.6), layout="constrained", sharey=True, squeeze=False
    )
    scores = [goal.scale * row.mean("score") for row in rows]
    readings = list(dict.fromkeys(row.contestant.reading for row in rows))
    for ax, (label, found) in zip(axes.flat, told.items(), strict=True):
        for number, reading in enumerate(readings):
            places = [place for place, row in enumerate(rows) if row.contestant.reading == reading]
            ax.errorbar(
                [found[place] for place in places],
                [scores[place] for place in places],
                _bars([rows[place] for place in places], goal),
                fmt=MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                capsize=2,
                elinewidth=0.8,
                markersize=5,
                label=reading,
            )
        ax.set(xlabel=label, xscale="log")
        ax.margins(x=0.25, y=0.08)
        low, high = ax.get_xlim()
        ax.xaxis.set_major_locator(LogLocator(subs=next(subs for span, subs in TICKS.items() if high > span * low)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    if not goal.higher_is_better and min(scores) > 0:
        axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel(f"test {score_label(goal)}")
    figure.suptitle(f"What {goal.score} costs (bars: standard deviation over the seeds)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(readings))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax, found in zip(axes.flat, told.values(), strict=True):
        named, others = {}, []
        for row, x, y in zip(rows, found, scores, strict=True):
            beaten = any(a <= x and _better(b, y, comparison) for a, b in zip(found, scores, strict=True))
            if len(rows) < MANY or not beaten or row.name == row.contestant.baseline:
                named[row.name] = (x, y)
            else:
                others.append((x, y))
        name_points(ax, named, others)
    return figure


def _bars(rows: list[Row], goal: Goal) -> list[list[float]]:
    """Lengths of the bars below and above the scores; a share of right answers goes no higher than one."""
    below = [goal.scale * row.deviation("score") for row in rows]
    is_share = isinstance(goal, (Classification, ExactMatch))
    room = [goal.scale * (1 - row.mean("score")) if is_share else math.inf for row in rows]
    return [below, [min(pair) for pair in zip(below, room, strict=True)]]


def _better(score: float, other: float, comparison: Comparison) -> bool:
    return score > other if comparison.task.goal.higher_is_better else score < other
