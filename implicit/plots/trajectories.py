"""The paths of iterates through state space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from solvers import State
from solvers.state import Layout

from .style import COLOURS, LINES, MARKERS, axes_or_new, by_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Path: TypeAlias = Sequence[State] | torch.Tensor | NDArray[np.float64]
"""The states after 0, 1, 2, … steps, as `Equilibrium.iterates` gives them, or stacked, (steps, batch, …)."""


def plot_trajectories(paths: Path | Mapping[str, Path], *, rows: int = 8, ax: Axes | None = None) -> Axes:
    """The iterates of some rows as lines in the plane, from a hollow marker to a star.

    States with two entries are drawn as they are, longer ones by the two principal components of all points, and states
    with one entry against the step.

        path = layer.iterates(x, at=tuple(range(20)))
        plot_trajectories(path)

    Args:
        paths: one, or several with their names (other solvers, other starts), of states of one size.
        rows: draw at most this many rows of each, the first ones.
        ax: where to draw; None: a new figure.
    """
    ax = axes_or_new(ax)
    named: Mapping[str, Path] = by_title(paths, "")
    flat = {name: _flat(path)[:, :rows] for name, path in named.items()}
    sizes = {points.shape[2] for points in flat.values()}
    if len(sizes) != 1:
        raise ValueError(
            f"plot_trajectories: the states have {sorted(sizes)} numbers per row: they must be of one size"
        )
    (size,) = sizes
    labels = ["step", "z"] if size == 1 else ["z₁", "z₂"]
    if size > 2:
        flat, shares = _principal(flat)
        labels = [f"component {k} ({share:.0%} of the variance)" for k, share in enumerate(shares, start=1)]
    for number, (name, points) in enumerate(flat.items()):
        for row in range(points.shape[1]):
            look = number if named is paths else row  # a single path: distinguish its rows
            colour, line = COLOURS[look % len(COLOURS)], LINES[number % len(LINES)]
            track = points[:, row]
            if size == 1:
                track = np.column_stack((np.arange(len(track)), track))
            ax.plot(*track.T, line, color=colour, marker=".", linewidth=1, label=None if row else name or None)
            known = track[np.isfinite(track).all(axis=1)]
            if len(known):
                start, end = known[0], known[-1]
                ax.plot(*start, MARKERS[number % len(MARKERS)], color=colour, markerfacecolor="white", markersize=6)
                ax.plot(*end, "*", color=colour, markersize=9)
    if size == 1:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel=labels[0], ylabel=labels[1], title="Iterates, from hollow marker to star")
    if named is paths:
        ax.legend()
    return ax


def _flat(path: Path) -> NDArray[np.float64]:
    """(steps, batch, dim), with NaN for entries that are not finite."""
    states = list(torch.from_numpy(path) if isinstance(path, np.ndarray) else path)
    if not states:
        raise ValueError("plot_trajectories: a path of no states cannot be drawn")
    layout = Layout(states[0], "a state")
    points = torch.stack([layout.flatten(state).detach().double() for state in states]).cpu().numpy()
    return np.where(np.isfinite(points), points, np.nan)


def _principal(flat: Mapping[str, NDArray[np.float64]]) -> tuple[dict[str, NDArray[np.float64]], list[float]]:
    """The two principal components of all points, and their shares of the variance."""
    size = next(iter(flat.values())).shape[2]
    points = np.concatenate([one.reshape(-1, size) for one in flat.values()])
    points = points[np.isfinite(points).all(axis=1)]
    centre = points.mean(axis=0) if len(points) else np.zeros(size)
    _, strengths, axes = np.linalg.svd(points - centre, full_matrices=False)
    if len(axes) < 2:
        axes, strengths = np.eye(2, size), np.zeros(2)
    total = float((strengths**2).sum()) or 1.0
    shares = [float(strength**2) / total for strength in strengths[:2]]
    return {name: (one - centre) @ axes[:2].T for name, one in flat.items()}, shares
