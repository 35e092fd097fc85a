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
    """Test accuracy and training loss against epochs: the mean over the seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, curve, scale, label in (
        (axes[0], "test_accuracy", 100, "test accuracy (%)"),
        (axes[1], "train_loss", 1, "training loss (cross-entropy)"),
    ):
        for number, row in enumerate(comparison.rows):
            mean = scale * np.mean(_curve(row, curve), axis=0)
            epochs = np.arange(1, len(mean) + 1)
            ax.plot(epochs, mean, LINES[number % len(LINES)], marker=".", color=_colour(number), label=row.name)
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    lowest = min(100 * row.mean("accuracy") for row in comparison.rows)
    axes[0].set_ylim(max(0, lowest - 15), 101)  # where they differ, not the climb
    axes[0].set_title("Test accuracy (watched, never used to choose)")
    axes[1].set_title("Training loss")
    axes[1].set_yscale("log")
    axes[0].legend()
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
    """Accuracy against FLOPs, seconds and memory."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained", sharey=True)
    figures: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("MFLOPs a sample, forward", lambda row: row.mean("flops") / 1e6),
        ("seconds an epoch", lambda row: row.seconds_per_epoch()),
        ("activations saved (MiB, batch of 64)", lambda row: row.mean("saved_bytes") / 2**20),
    )
    for ax, (label, value) in zip(axes, figures, strict=True):
        for number, row in enumerate(comparison.rows):
            ax.errorbar(
                value(row),
                100 * row.mean("accuracy"),
                100 * row.deviation("accuracy"),
                fmt="osD^vPX"[number % 7],
                color=_colour(number),
                capsize=3,
                label=row.name,
            )
        ax.set(xlabel=label, xscale="log")
        low, high = ax.get_xlim()
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else range(1, 10)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("test accuracy (%)")
    figure.suptitle("What accuracy costs (bars: standard deviation over the seeds)")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def boundaries(comparison: Comparison) -> Figure | None:
    """For tasks in the plane: what each network of the first seed answers, with the test points."""
    inputs, labels = comparison.task.test
    if inputs.shape[1:] != (2,):
        return None
    columns = min(4, len(comparison.rows))
    lines = -(-len(comparison.rows) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2.9 * columns, 3.1 * lines),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    reach = 1.15 * float(inputs.abs().max())
    line = torch.linspace(-reach, reach, 161)
    grid = torch.cartesian_prod(line, line)
    for ax in axes.flat[len(comparison.rows) :]:
        ax.set_axis_off()
    for ax, row in zip(axes.flat, comparison.rows, strict=False):
        with torch.no_grad():
            share = row.runs[0].network(grid).softmax(dim=1)[:, 1].reshape(161, 161).T
        picture = ax.pcolormesh(line, line, share, cmap="PuOr", vmin=0, vmax=1, shading="nearest", rasterized=True)
        ax.contour(line, line, share, levels=[0.5], colors="black", linewidths=1.2)
        for label, marker in ((0, "o"), (1, "^")):
            points = inputs[:400][labels[:400] == label]
            ax.scatter(*points.T, s=5, marker=marker, color="white", edgecolors="black", linewidths=0.3)
        ax.set(title=f"{row.name}: {100 * row.runs[0].measurement.accuracy:.1f} %", aspect="equal", xlabel="x₁")
        ax.grid(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("x₂")
    figure.colorbar(picture, ax=axes, label="probability of the outer ring", shrink=0.7)
    return figure


FIGURES: dict[str, tuple[str, Callable[[Comparison], Any]]] = {
    "boundaries": ("What the networks answer in the plane; black: the decision boundary (first seed).", boundaries),
    "training": ("Accuracy and loss over training.", training_curves),
    "residuals": ("Convergence of the solves on the test part, after training (first seed).", residuals),
    "evaluations": ("Evaluations of the cells over training.", evaluations),
    "cost": ("Accuracy against work, time and memory.", cost),
}
"""File name → (caption, how it is drawn; None where the comparison has nothing to show)."""


def _curve(row: Row, name: str) -> Any:
    return np.array([[epoch[name] for epoch in run.training.curves] for run in row.runs])


def _solving(comparison: Comparison) -> list[Row]:
    return [row for row in comparison.rows if row.runs[0].measurement.solutions]


def _tolerance(row: Row) -> float:
    return next(layer.rtol for layer in row.runs[0].network.modules() if isinstance(layer, Equilibrium))


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
