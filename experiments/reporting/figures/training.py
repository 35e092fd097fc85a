"""Figures of the training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from implicit.plots import LINES

from ...tasks.goals import Classification
from .style import colour_of, curve_of, score_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison import Comparison

SHOWN = 3
"""Number of the best networks shown beside the baselines until a reader picks others."""


def training_curves(comparison: Comparison) -> Figure | None:
    """Test score and training loss against epochs: the mean over the seeds, of the baselines and the best.

    All curves are drawn; the id `curve-N-M` is that of the N-th network in the M-th panel, for a reader to pick.
    """
    rows = [row for row in comparison.ranked if row.trained and np.isfinite(curve_of(row, "train_loss")).any()]
    if not rows or comparison.settings["epochs"] < 2:
        return None  # a curve of one point says nothing
    goal = comparison.task.goal
    baselines = {row.contestant.baseline for row in comparison.rows}
    best = {row.name for row in rows[:SHOWN]}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    scores = []
    for panel, (ax, curve, scale, label) in enumerate(
        (
            (axes[0], "test_score", goal.scale, f"test {score_label(goal)}"),
            (axes[1], "train_loss", 1, "training loss"),
        )
    ):
        for number, row in enumerate(rows):
            mean = scale * np.mean(curve_of(row, curve), axis=0)
            scores += [mean] if panel == 0 else []
            shown = row.name in best or row.name in baselines
            ax.plot(
                np.arange(1, len(mean) + 1),
                mean,
                LINES[number // 7 % len(LINES)],
                marker=".",
                color=colour_of(number),
                label=row.name,
                visible=shown,
                gid=f"curve-{number}-{panel}",
            )
        ax.set(xlabel="epoch", ylabel=label, xlim=(0.5, comparison.settings["epochs"] + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if isinstance(goal, Classification):
        lowest = float(min((mean[-1] for mean in scores), default=0.0))
        axes[0].set_ylim(max(0.0, lowest - 15), 101)  # where the curves differ, not their climb
    elif not goal.higher_is_better:
        axes[0].set_yscale("log")
    axes[0].set_title(f"Test {goal.score} (watched, never used to choose)")
    axes[1].set_title("Training loss")
    axes[1].set_yscale("log")
    lines = [line for line in axes[1].lines if line.get_visible()]
    axes[1].legend(handles=lines, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure
