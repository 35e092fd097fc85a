"""What more steps of a repeated cell add."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from .style import draw_scores, score_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison import Comparison


def more_steps(comparison: Comparison) -> Figure | None:
    """The test score after numbers of steps other than those trained: the mean over the seeds, and their range."""
    rows = [(n, row) for n, row in enumerate(comparison.rows) if row.runs[0].measurement.depth_scores]
    if not rows:
        return None
    goal = comparison.task.goal
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, row in rows:
        steps = list(row.runs[0].measurement.depth_scores)
        scores = goal.scale * np.array([list(run.measurement.depth_scores.values()) for run in row.runs])
        draw_scores(ax, number, row.name, steps, scores)
    ax.set_xscale("log", base=2)
    ax.set_xticks(steps, [str(step) for step in steps])
    ax.minorticks_off()
    ax.set(xlabel="plain steps of the cell", ylabel=f"test {score_label(goal)}")
    ax.set_title("More steps than in training (bands: all seeds)")
    figure.legend(loc="outside right center")
    return figure
