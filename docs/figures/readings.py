"""The README's picture: one method in four readings, each a drawing of the network above the iterates it computes.

`python docs/figures/readings.py` draws it anew. A test holds the committed picture to what this file computes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

from implicit.plots import COLOURS
from models import OptDEQ, OptDNN, parallel_evaluate

PICTURE = Path(__file__).with_suffix(".png")
DEPTH = 6
SWEEPS = (1, 2, 3, DEPTH)
TARGET = torch.tensor([[0.6, -0.1]], device="cpu")
STARTS = torch.tensor([[-1.9, 1.05], [1.0, 1.15], [-1.2, -1.1]], device="cpu")
WEIGHT = torch.tensor([[0.75, -1.05], [0.40, 0.25]], device="cpu")


class Smooth(nn.Module):
    """`G(z, x) = 0.2·(x − z)`, minus the gradient of a quadratic."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.2 * (x - z)


class Proximal(nn.Module):
    """`P(z, x) = −Wᵀtanh(W(z − x))`, minus the gradient of a convex function, steep in one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return -torch.tanh((z - x) @ self.weight.mT) @ self.weight


def objective(z: Tensor) -> Tensor:
    """The function whose gradient is −(G + P): (points, 2) → (points,)."""
    away = z - TARGET
    return 0.1 * away.square().sum(-1) + torch.cosh(away @ WEIGHT.mT).log().sum(-1)


def computed() -> dict[str, Tensor]:
    """The iterates of each reading, with the same two modules: (paths, points, 2)."""
    pair, start = (Smooth(), Proximal()), STARTS[:1]

    def network(depth: int, alpha: float) -> OptDNN:
        return OptDNN("pgd", [pair] * depth, alpha=alpha, rtol=1e-6)

    def path(alpha: float) -> Tensor:
        return torch.stack([start, *(network(depth, alpha)(start, TARGET) for depth in range(1, DEPTH + 1))], 1)

    def swept(sweeps: int) -> Tensor:  # of its first layers a sweep makes what it makes of a network that ends there
        ends = (
            parallel_evaluate(network(depth, 0.0), start, TARGET, sweeps=min(sweeps, depth))
            for depth in range(1, DEPTH + 1)
        )
        return torch.stack([start, *ends], 1)

    with torch.no_grad():
        layer = OptDEQ("pgd", pair, rtol=1e-6).equilibrium
        iterates = layer.iterates(TARGET.expand(len(STARTS), 2), at=tuple(range(8)), z0=STARTS)
        return {
            "explicit": path(1.0),
            "implicit": path(0.0),
            "equilibrium": torch.stack(iterates, 1),
            "parallel": torch.cat([swept(sweeps) for sweeps in SWEEPS]),
        }


def box(ax: Axes, x: float, y: float, text: str, colour: str) -> None:
    shape = FancyBboxPatch((x - 0.05, y - 0.12), 0.10, 0.24, boxstyle="round,pad=0,rounding_size=0.02")
    shape.set(facecolor=colour, edgecolor="none", alpha=0.9, mutation_aspect=2.2)
    ax.add_patch(shape)
    ax.text(x, y, text, ha="center", va="center", color="white", fontsize=9)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], *, bend: float = 0.0) -> None:
    style = {"arrowstyle": "-|>", "color": "0.35", "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=style | {"connectionstyle": f"arc3,rad={bend}"})


LAYERS = {"1": 0.22, "2": 0.40, "L": 0.74}


def chain(ax: Axes, colour: str) -> None:
    """Layers in a row."""
    ax.text(0.04, 0.5, "$z_0$", ha="center", va="center")
    ax.text(0.57, 0.5, "…", ha="center", va="center")
    ax.text(0.96, 0.5, "$z_L$", ha="center", va="center")
    for start, end in ((0.08, 0.16), (0.28, 0.34), (0.46, 0.53), (0.61, 0.68), (0.80, 0.91)):
        arrow(ax, (start, 0.5), (end, 0.5))
    for name, x in LAYERS.items():
        box(ax, x, 0.5, name, colour)


def solving_chain(ax: Axes, colour: str) -> None:
    """The same, each layer fed with its own output."""
    chain(ax, colour)
    for x in LAYERS.values():
        arrow(ax, (x + 0.03, 0.64), (x - 0.03, 0.64), bend=1.9)


def loop(ax: Axes, colour: str) -> None:
    """One layer fed with its own output, and with x."""
    box(ax, 0.5, 0.5, "T", colour)
    arrow(ax, (0.56, 0.5), (0.86, 0.5))
    arrow(ax, (0.5, 0.13), (0.5, 0.36))
    ax.plot([0.72, 0.72, 0.28, 0.28], [0.5, 0.88, 0.88, 0.5], color="0.35", lw=1.1)
    arrow(ax, (0.28, 0.5), (0.44, 0.5))
    ax.text(0.5, 0.02, "$x$", ha="center", va="center")
    ax.text(0.92, 0.5, "$z^*$", ha="center", va="center")


def fan(ax: Axes, colour: str) -> None:
    """Layers side by side, their outputs summed, the whole repeated."""
    ax.text(0.09, 0.5, "guesses\n$y_1…y_L$", ha="center", va="center", fontsize=8)
    for name, y in {"1": 0.84, "2": 0.5, "L": 0.16}.items():
        arrow(ax, (0.19, 0.5), (0.36, y))
        box(ax, 0.42, y, name, colour)
        arrow(ax, (0.48, y), (0.64, 0.5))
    ax.text(0.68, 0.5, "Σ", ha="center", va="center", fontsize=13)
    arrow(ax, (0.72, 0.5), (0.82, 0.5))
    ax.text(0.91, 0.5, "$z_1…z_L$", ha="center", va="center", fontsize=8)
    ax.plot([0.91, 0.91, 0.09], [0.38, -0.12, -0.12], color="0.35", lw=1.1)
    arrow(ax, (0.09, -0.12), (0.09, 0.26))
    ax.text(0.72, -0.02, "next sweep", ha="center", va="center", fontsize=8, color="0.35")


def plane(ax: Axes) -> None:
    """The objective's level lines, and its minimum."""
    across, up = torch.linspace(-2.3, 1.7, 120, device="cpu"), torch.linspace(-1.6, 1.6, 100, device="cpu")
    grid = torch.stack(torch.meshgrid(across, up, indexing="xy"), -1)
    values = objective(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    ax.contour(across, up, values.sqrt(), levels=9, colors="0.85", linewidths=0.8)
    ax.plot(*TARGET[0], marker="*", color="black", markersize=9, zorder=5)
    ax.set(xlim=(-2.3, 1.7), ylim=(-1.6, 1.6), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_color("0.8")


READINGS = {
    "explicit": ("Explicit", "$z^+ = z + G(z) + P(z)$", "L layers, unrolled"),
    "implicit": ("Implicit", "$z^+ = z + G(z) + P(z^+)$", "each layer solves for its output"),
    "equilibrium": ("Equilibrium", "$z^* = z^* + T(z^*, x)$", "one layer of infinite depth"),
    "parallel": ("Parallel over depth", "all $z_k$ at once, sweep after sweep", "k sweeps: k layers exact"),
}
SKETCHES = {"explicit": chain, "implicit": solving_chain, "equilibrium": loop, "parallel": fan}


def draw(paths: dict[str, Tensor]) -> Figure:
    """The four readings, side by side."""
    with plt.rc_context({"font.size": 11, "font.family": "DejaVu Sans"}):
        figure, grid = plt.subplots(2, 4, figsize=(12, 4.9), height_ratios=(1.2, 2), layout="constrained")
        for (name, (title, rule, caption)), colour, column in zip(READINGS.items(), COLOURS, grid.T, strict=False):
            sketch, ax = column
            sketch.set(xlim=(0, 1), ylim=(-0.15, 1.75))
            sketch.axis("off")
            sketch.text(0.5, 1.7, title, ha="center", va="top", fontsize=13, fontweight="bold", color=colour)
            sketch.text(0.5, 1.36, rule, ha="center", va="top")
            SKETCHES[name](sketch, colour)
            plane(ax)
            for place, path in enumerate(paths[name]):
                look: dict[str, Any] = {"color": colour}
                if name == "parallel":
                    plural = "" if SWEEPS[place] == 1 else "s"
                    look |= {"alpha": (place + 2) / (len(SWEEPS) + 1), "label": f"{SWEEPS[place]} sweep{plural}"}
                ax.plot(*path.T, marker="o", markersize=4, lw=1.6, **look)
                ax.plot(*path[0], color="black", marker="o", markersize=6)
            if name == "parallel":
                ax.legend(loc="lower left", fontsize=9, frameon=False, labelspacing=0.2, borderpad=0)
            ax.set_xlabel(caption)
    return figure


def main() -> None:
    paths = computed()
    data = {name: values.tolist() for name, values in paths.items()}  # beside the pixels, which differ with the fonts
    draw(paths).savefig(PICTURE, dpi=150, metadata={"Description": json.dumps(data), "Software": None})


if __name__ == "__main__":
    main()
