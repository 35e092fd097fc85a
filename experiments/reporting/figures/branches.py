"""What each branch of a Para-Former adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from .style import draw_scores, score_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison import Comparison


def kept_branches(comparison: Comparison) -> Figure | None:
    """The test score of the first 1 … B branches of each trained network: the mean over the seeds, and their range."""
    rows = [(n, row) for n, row in enumerate(comparison.rows) if row.runs[0].measurement.prefix_scores]
    if not rows:
        return None
    goal = comparison.task.goal
    figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for number, row in rows:
        scores = goal.scale * np.array([run.measurement.prefix_scores for run in row.runs])
        draw_scores(ax, number, row.name, np.arange(1, scores.shape[1] + 1), scores)
    ax.set(xlabel="branches kept, the first of them", ylabel=f"test {score_label(goal)}")
    ax.set_title("Trained Para-Formers with their last branches left out (bands: all seeds)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return figure
