"""Figures of the training and of the solves within."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from implicit.plots import LINES, plot_convergence

from ..goals import Classification
from .style import colour_of, curve_of, score_label, solving, tolerance, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..results import Comparison


def training_curves(comparison: Comparison) -> Figure:
    """Test score and training loss against epochs: the mean over the seeds."""
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
        lowest = min(100 * row.mean("score") for row in comparison.rows)
        axes[0].set_ylim(max(0, lowest - 15), 101)  # where they differ, not the climb
    elif not goal.higher_is_better:
        axes[0].set_yscale("log")
    axes[0].set_title(f"Test {goal.score} (watched, never used to choose)")
    axes[1].set_title("Training loss")
    axes[1].set_yscale("log")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def residuals(comparison: Comparison) -> Figure | None:
    """How the solves of each network converge on the test part, after training with the first seed."""
    rows = solving(comparison)
    if not rows:
        return None
    figure, axes = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 3.8), layout="constrained", squeeze=False)
    for ax, row in zip(axes[0], rows, strict=True):
        solutions = row.runs[0].measurement.solutions
        names = ["equilibrium"] if len(solutions) == 1 else [f"layer {i + 1}" for i in range(len(solutions))]
        plot_convergence(dict(zip(names, solutions, strict=True)), rtol=tolerance(row), ax=ax)
        ax.set_title(f"{row.name}: median row, 10–90 % band")
    return figure


def evaluations(comparison: Comparison) -> Figure | None:
    """Evaluations a row and share of converged rows over training: the mean over the seeds."""
    rows = solving(comparison)
    if not rows:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for number, row in enumerate(rows):
        colour = colour_of(comparison.rows.index(row))
        for direction, line in (("forward", "-"), ("backward", "--")):
            values = np.mean(curve_of(row, f"{direction}_evaluations"), axis=0)
            axes[0].plot(
                np.arange(1, len(values) + 1), values, line, marker=".", color=colour, label=f"{row.name}, {direction}"
            )
        values = 100 * np.mean(curve_of(row, "converged"), axis=0)
        axes[1].plot(
            np.arange(1, len(values) + 1), values, LINES[number % len(LINES)], marker=".", color=colour, label=row.name
        )
    axes[0].set(
        xlabel="epoch", ylabel="evaluations a row", title="Work of the solves, all layers together", ylim=(0, None)
    )
    axes[1].set(xlabel="epoch", ylabel="rows converged (%)", title="Solves that met their tolerance in training")
    axes[1].set_ylim(top=100.5)
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return figure
