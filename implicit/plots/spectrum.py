"""Eigenvalues in the complex plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..diagnostics.arrays import as_array
from .style import COLOURS, LINES, MARKERS, axes_or_new, by_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_eigenvalues(values: ArrayLike | Mapping[str, ArrayLike], *, ax: Axes | None = None) -> Axes:
    """Eigenvalues in the complex plane and the unit circle, outside which plain iteration does not converge.

    Args:
        values: what `diagnostics.eigenvalues` returns, or any complex numbers, or several of them with their names;
            those that are not finite are left out.
        ax: where to draw; None: a new figure.
    """
    ax = axes_or_new(ax)
    angles = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(angles), np.sin(angles), color="0.4", linewidth=1, linestyle=LINES[1], label="unit circle")
    for number, (name, one) in enumerate(by_title(values, "eigenvalues").items()):
        points = as_array(one).ravel()
        points = points[np.isfinite(points)]
        outside = int((np.abs(points) > 1).sum())
        ax.plot(
            points.real,
            points.imag,
            color=COLOURS[number % len(COLOURS)],
            linestyle="",
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            alpha=0.7,
            label=f"{name}: largest modulus {np.abs(points).max(initial=0):.3g}, {outside} of {points.size} outside",
        )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xlabel="real part", ylabel="imaginary part", title="Eigenvalues of the Jacobian ∂f/∂z")
    below = len(ax.get_lines()) <= 5  # a longer legend would leave the plot no height
    ax.legend(loc="upper center" if below else "upper left", bbox_to_anchor=(0.5, -0.16) if below else (1.02, 1))
    return ax
