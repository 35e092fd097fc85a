"""Figures of what the networks answer, for inputs of one and two numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from implicit.plots import COLOURS

from ...tasks.goals import Classification, Goal
from .style import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison import Comparison, Row


def boundaries(comparison: Comparison) -> Figure | None:
    """For tasks in the plane: what each network of the first seed answers, with the test points."""
    inputs, labels = comparison.task.sample()
    goal = comparison.task.goal
    if not (isinstance(goal, Classification) and goal.classes == 2) or inputs.shape[1:] != (2,) or not comparison.rows:
        return None
    figure, axes = _panels(comparison)
    reach = 1.15 * float(inputs.abs().max())
    side = torch.linspace(-reach, reach, 161, device="cpu")
    grid, line = torch.cartesian_prod(side, side), side.numpy()
    for ax, row in zip(axes.flat, comparison.rows, strict=False):
        with torch.no_grad():
            share = row.runs[0].network(grid).softmax(dim=1)[:, 1].reshape(161, 161).T.numpy()
        picture = ax.pcolormesh(line, line, share, cmap="PuOr", vmin=0, vmax=1, shading="nearest", rasterized=True)
        ax.contour(line, line, share, levels=[0.5], colors="black", linewidths=1.2)
        for label, marker in ((0, "o"), (1, "^")):
            points = inputs[:400][labels[:400] == label]
            ax.scatter(*points.T.numpy(), s=5, marker=marker, color="white", edgecolors="black", linewidths=0.3)
        ax.set(title=_title(row, comparison.task.goal), aspect="equal", xlabel="x₁")
        ax.grid(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("x₂")
    figure.colorbar(picture, ax=axes, label="probability of class 1", shrink=0.7)
    return figure


def functions(comparison: Comparison) -> Figure | None:
    """For functions of one variable: the target and what each network of the first seed makes of it."""
    inputs, targets = comparison.task.sample()
    if inputs.shape[1:] != (1,) or targets.shape[1:] != (1,) or not comparison.rows:
        return None
    figure, axes = _panels(comparison)
    for ax, row in zip(axes.flat, comparison.rows, strict=False):
        with torch.no_grad():
            values = row.runs[0].network(inputs)
        ax.plot(inputs.numpy(), targets.numpy(), color="#999999", linewidth=2.5, label="target")
        ax.plot(inputs.numpy(), values.numpy(), color=COLOURS[1], linewidth=1, label="network")
        ax.set(title=_title(row, comparison.task.goal), xlabel="x")
    axes.flat[0].legend(loc="upper right")
    return figure


def _title(row: Row, goal: Goal) -> str:
    """The network's name, with its score from the first seed if that is known."""
    score = row.runs[0].measurement.score
    return row.name if score is None else f"{row.name}: {goal.score} {goal.show(score)} {goal.unit}".strip()


def _panels(comparison: Comparison) -> tuple[Figure, Any]:
    """One panel for each network."""
    return panels(len(comparison.rows), columns=4, size=(2.6, 2.8), shared=True)
