"""The figures of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import torch

mpl.use("Agg")  # figures go to files, whatever display there is
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from implicit import Equilibrium
from implicit.plots import LINES, plot_convergence

from .goals import Classification, Goal
from .restorations import distances, restorations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .results import Comparison, Row

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers."""

STYLE = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 110,
    "font.size": 9,
}


def training_curves(comparison: Comparison) -> Figure:
    """Test score and training loss against epochs: the mean over the seeds."""
    goal = comparison.task.goal
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, curve, scale, label in (
        (axes[0], "test_score", goal.scale, f"test {_label(goal)}"),
        (axes[1], "train_loss", 1, "training loss"),
    ):
        for number, row in _trained(comparison):
            mean = scale * np.mean(_curve(row, curve), axis=0)
            epochs = np.arange(1, len(mean) + 1)
            ax.plot(epochs, mean, LINES[number % len(LINES)], marker=".", color=_colour(number), label=row.name)
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


def differences(comparison: Comparison) -> Figure | None:
    """Each network's score less the baseline's, in pairs of one seed, with the 95 % interval."""
    found = [(row.name, comparison.difference(row)) for row in comparison.rows]
    shown = [(name, difference) for name, difference in found if difference is not None]
    if not shown or len(comparison.rows[0].runs) < 2:
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
        xlabel=f"{_label(goal)} less that of {comparison.baseline} ({direction} is better)",
        title="Mean paired difference, 95 % interval (diamonds: undecided)",
    )
    return figure


def functions(comparison: Comparison) -> Figure | None:
    """For functions of one variable: the target and what each network of the first seed makes of it."""
    inputs, targets = comparison.task.sample()
    if inputs.shape[1:] != (1,) or targets.shape[1:] != (1,):
        return None
    figure, axes = _panels(comparison)
    for ax, row in zip(axes.flat, comparison.rows, strict=False):
        with torch.no_grad():
            values = row.runs[0].network(inputs)
        ax.plot(inputs.numpy(), targets.numpy(), color="#999999", linewidth=2.5, label="target")
        ax.plot(inputs.numpy(), values.numpy(), color=COLOURS[1], linewidth=1, label="network")
        ax.set(title=f"{row.name}: MSE {row.runs[0].measurement.score:.1e}", xlabel="x")
    axes.flat[0].legend(loc="upper right")
    return figure


def residuals(comparison: Comparison) -> Figure | None:
    """How the solves of each network converge on the test part, after training with the first seed."""
    rows = _solving(comparison)
    if not rows:
        return None
    figure, axes = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 3.8), layout="constrained", squeeze=False)
    for ax, row in zip(axes[0], rows, strict=True):
        solutions = row.runs[0].measurement.solutions
        names = ["equilibrium"] if len(solutions) == 1 else [f"layer {i + 1}" for i in range(len(solutions))]
        plot_convergence(dict(zip(names, solutions, strict=True)), rtol=_tolerance(row), ax=ax)
        ax.set_title(f"{row.name}: median row, 10–90 % band")
    return figure


def evaluations(comparison: Comparison) -> Figure | None:
    """Evaluations a row and share of converged rows over training: the mean over the seeds."""
    rows = _solving(comparison)
    if not rows:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for number, row in enumerate(rows):
        colour = _colour(comparison.rows.index(row))
        for direction, line in (("forward", "-"), ("backward", "--")):
            values = np.mean(_curve(row, f"{direction}_evaluations"), axis=0)
            axes[0].plot(
                np.arange(1, len(values) + 1), values, line, marker=".", color=colour, label=f"{row.name}, {direction}"
            )
        values = 100 * np.mean(_curve(row, "converged"), axis=0)
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


def cost(comparison: Comparison) -> Figure:
    """The score against FLOPs, seconds and memory."""
    goal = comparison.task.goal
    height = max(3.8, 0.6 + 0.21 * len(comparison.rows))  # of the legend
    figure, axes = plt.subplots(1, 3, figsize=(11, height), layout="constrained", sharey=True)
    figures: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("MFLOPs a sample, forward", lambda row: row.mean("flops") / 1e6),
        ("seconds an epoch", lambda row: row.seconds_per_epoch()),
        (f"activations saved (MiB, batch of {comparison.task.batch})", lambda row: row.mean("saved_bytes") / 2**20),
    )
    for ax, (label, value) in zip(axes, figures, strict=True):
        for number, row in _trained(comparison):
            ax.errorbar(
                value(row),
                goal.scale * row.mean("score"),
                goal.scale * row.deviation("score"),
                fmt="osD^vPX"[number // len(COLOURS) % 7],
                color=_colour(number),
                capsize=3,
                label=row.name,
            )
        ax.set(xlabel=label, xscale="log")
        low, high = ax.get_xlim()
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else range(1, 10)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel(f"test {_label(goal)}")
    figure.suptitle(f"What {goal.score} costs (bars: standard deviation over the seeds)")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def boundaries(comparison: Comparison) -> Figure | None:
    """For tasks in the plane: what each network of the first seed answers, with the test points."""
    inputs, labels = comparison.task.sample()
    if inputs.shape[1:] != (2,):
        return None
    figure, axes = _panels(comparison)
    reach = 1.15 * float(inputs.abs().max())
    side = torch.linspace(-reach, reach, 161)
    grid, line = torch.cartesian_prod(side, side), side.numpy()
    for ax, row in zip(axes.flat, comparison.rows, strict=False):
        with torch.no_grad():
            share = row.runs[0].network(grid).softmax(dim=1)[:, 1].reshape(161, 161).T.numpy()
        picture = ax.pcolormesh(line, line, share, cmap="PuOr", vmin=0, vmax=1, shading="nearest", rasterized=True)
        ax.contour(line, line, share, levels=[0.5], colors="black", linewidths=1.2)
        for label, marker in ((0, "o"), (1, "^")):
            points = inputs[:400][labels[:400] == label]
            ax.scatter(*points.T.numpy(), s=5, marker=marker, color="white", edgecolors="black", linewidths=0.3)
        ax.set(title=f"{row.name}: {100 * row.runs[0].measurement.score:.1f} %", aspect="equal", xlabel="x₁")
        ax.grid(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("x₂")
    figure.colorbar(picture, ax=axes, label="probability of the outer ring", shrink=0.7)
    return figure


def _panels(comparison: Comparison) -> tuple[Figure, Any]:
    """One panel for each network."""
    columns = min(5, len(comparison.rows))
    lines = -(-len(comparison.rows) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2.6 * columns, 2.8 * lines),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for ax in axes.flat[len(comparison.rows) :]:
        ax.set_axis_off()
    return figure, axes


FIGURES: dict[str, tuple[str, Callable[[Comparison], Any]]] = {
    "boundaries": ("What the networks answer in the plane; black: the decision boundary (first seed).", boundaries),
    "functions": ("The target and what the networks make of it (first seed).", functions),
    "restorations": ("Test crops and their restorations, with their PSNR (first seed).", restorations),
    "distances": ("Before training: the networks against the optimum of the classical problem.", distances),
    "differences": ("Scores less the baseline's, in pairs of one seed.", differences),
    "training": ("Score and loss over training.", training_curves),
    "residuals": ("Convergence of the solves on the test part, after training (first seed).", residuals),
    "evaluations": ("Evaluations of the cells over training.", evaluations),
    "cost": ("The score against work, time and memory.", cost),
}
"""File name → (caption, how it is drawn; None where the comparison has nothing to show)."""


def _curve(row: Row, name: str) -> Any:
    return np.array([[epoch[name] for epoch in run.training.curves] for run in row.runs])


def _trained(comparison: Comparison) -> list[tuple[int, Row]]:
    return [(number, row) for number, row in enumerate(comparison.rows) if row.trained]


def _solving(comparison: Comparison) -> list[Row]:
    return [row for row in comparison.rows if row.trained and row.runs[0].measurement.solutions]


def _tolerance(row: Row) -> float:
    return next(layer.rtol for layer in row.runs[0].network.modules() if isinstance(layer, Equilibrium))


def _label(goal: Goal) -> str:
    return f"{goal.score} ({goal.unit})" if goal.unit else goal.score


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
