"""Figures of the solves within the networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from implicit import Equilibrium
from implicit.plots import LINES, MARKERS, plot_convergence, plot_eigenvalues, plot_steps

from .style import colour_of, curve_of, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from solvers import Solution

    from ..comparison import Comparison, Row


def residuals(comparison: Comparison) -> Figure | None:
    """How the solves of each network converge on the test part, after training with the first seed."""
    rows = _solving(comparison)
    if not rows:
        return None
    figure, axes = _panels(rows)
    for ax, row in zip(axes, rows, strict=False):
        plot_convergence(_solutions(row), rtol=_tolerance(row), ax=ax)
        ax.set_title(f"{row.name}: median row, 10–90 % band")
        ax.legend(fontsize=7)
    return figure


def steps(comparison: Comparison) -> Figure | None:
    """Steps after which the rows of the test part had stopped, for networks where they differ (first seed, trained)."""
    rows = [row for row in _solving(comparison) if _differ(row)]
    if not rows:
        return None
    figure, axes = _panels(rows)
    for ax, row in zip(axes, rows, strict=False):
        solutions = _solutions(row)
        plot_steps(solutions, ax=ax)
        most = max(int(solution.steps.max()) for solution in solutions.values())
        ax.set(title=f"{row.name}: rows that had stopped", xlim=(0, most + 1))
        ax.legend(fontsize=7)
    return figure


def spectra(comparison: Comparison) -> Figure | None:
    """The largest eigenvalues at the solutions, of some layers of each network, after training with the first seed."""
    rows = [(row, row.diagnosis) for row in comparison.rows if row.diagnosis and row.diagnosis.eigenvalues]
    if not rows:
        return None
    figure, axes = _panels(rows)
    for ax, (row, diagnosis) in zip(axes, rows, strict=False):
        plot_eigenvalues({diagnosis.title(layer): found for layer, found in diagnosis.eigenvalues.items()}, ax=ax)
        ax.set_title(f"{row.name}: eigenvalues of ∂f/∂z")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7)  # no wider than its panel
    return figure


def evaluations(comparison: Comparison) -> Figure | None:
    """Evaluations per row and share of converged rows over training: the mean over the seeds."""
    rows = _solving(comparison)
    if not rows or comparison.settings["epochs"] < 2:
        return None
    asked = [row for row in rows if _tolerance(row) is not None]
    converged = {row.name: 100 * np.mean(curve_of(row, "converged"), axis=0) for row in asked}
    fails = any(values.min() < 100 for values in converged.values())  # otherwise the panel would show nothing
    figure, axes = plt.subplots(1, 1 + fails, figsize=(6.5 + 3.5 * fails, 3.8), layout="constrained", squeeze=False)
    axes = axes[0]
    for number, row in enumerate(rows):
        looks: dict[str, Any] = {"color": colour_of(comparison.rows.index(row)), "markersize": 4}
        looks["marker"] = MARKERS[number % len(MARKERS)]
        epochs = np.arange(1, comparison.settings["epochs"] + 1)
        for direction, line in (("forward", "-"), ("backward", "--")):
            values = np.mean(curve_of(row, f"{direction}_evaluations"), axis=0)
            axes[0].plot(epochs, values, line, label=f"{row.name}, {direction}", **looks)
        if fails and row.name in converged:
            axes[1].plot(epochs, converged[row.name], LINES[number % len(LINES)], label=row.name, **looks)
    axes[0].set(ylabel="evaluations per row (dashed: backward)", title="Work of the solves, all layers together")
    axes[0].set_ylim(bottom=0)
    if fails:
        axes[1].set(ylabel="rows converged (%)", title="Solves that met their tolerance in training")
        axes[1].set_ylim(top=100.5)
    axes[-1].legend(*_one_a_network(axes[0]), loc="center left", bbox_to_anchor=(1.02, 0.5))
    for ax in axes:
        ax.set(xlabel="epoch", xlim=(0.5, comparison.settings["epochs"] + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _solving(comparison: Comparison) -> list[Row]:
    """The trained rows that solve equilibria, or loop."""
    return [row for row in comparison.rows if row.trained and row.runs[0].measurement.solutions]


def _one_a_network(ax: Any) -> tuple[list[Any], list[str]]:
    """Legend entries of the forward curves alone, under the networks' names."""
    handles, labels = ax.get_legend_handles_labels()
    forward = [
        (handle, label.removesuffix(", forward")) for handle, label in zip(handles, labels) if "backward" not in label
    ]
    return [handle for handle, _ in forward], [label for _, label in forward]


def _differ(row: Row) -> bool:
    """Whether the rows of some solve stopped at different steps."""
    return any(int(solution.steps.min()) < int(solution.steps.max()) for solution in _solutions(row).values())


def _solutions(row: Row) -> dict[str, Solution]:
    solutions = row.runs[0].measurement.solutions
    whole = "equilibrium" if _tolerance(row) is not None else "loop"
    names = [whole] if len(solutions) == 1 else [f"layer {i + 1}" for i in range(len(solutions))]
    return dict(zip(names, solutions, strict=True))


def _tolerance(row: Row) -> float | None:
    """Relative tolerance of its solves; None: loops have none."""
    layers = (layer for layer in row.runs[0].network.modules() if isinstance(layer, Equilibrium))
    return next((layer.rtol for layer in layers), None)


def _panels(rows: list[Any]) -> tuple[Figure, Any]:
    figure, axes = panels(len(rows), columns=3, size=(3.7, 3.6))
    return figure, axes.flat
