"""Figures of the training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from implicit.plots import LINES

from ...tasks.goals import Classification
from .style import colour_of, curve_of, score_label, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison import Comparison


def training_curves(comparison: Comparison) -> Figure | None:
    """Test score and training loss against epochs: the mean over the seeds."""
    if not trained(comparison):
        return None
    goal = comparison.task.goal
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, curve, scale, label in (
        (axes[0], "test_score", goal.scale, f"test {score_label(goal)}"),
        (axes[1], "train_loss", 1, "training loss"),
    ):
        for number, row in trained(comparison):
            mean = scale * np.mean(curve_of(row, curve), axis=0)
            epochs = np.arange(1, len(mean) + 1)
            ax.plot(epochs, mean, LINES[number % len(LINES)], marker=".", color=colour_of(number), label=row.name)
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if isinstance(goal, Classification):
        lowest = min((100 * score for row in comparison.rows for score in row.values("score")), default=0.0)
        axes[0].set_ylim(max(0, lowest - 15), 101)  # where they differ, not the climb
    elif not goal.higher_is_better:
        axes[0].set_yscale("log")
    axes[0].set_title(f"Test {goal.score} (watched, never used to choose)")
    axes[1].set_title("Training loss")
    axes[1].set_yscale("log")
    for ax in axes:
        ax.set_xlim(0.5, comparison.settings["epochs"] + 0.5)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure
