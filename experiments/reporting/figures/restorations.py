"""Figures of the inverse problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch

from implicit.plots import LINES

from ...contestants.deblurring import optimum, unrolled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison import Comparison

CROPS = (3, 20, 70, 100)
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128)


def restorations(comparison: Comparison) -> Figure | None:
    """Some test crops: sharp, blurred, and what each network of the first seed makes of them."""
    if comparison.task.name != "deblur":
        return None
    pictures, sharp = comparison.task.sample()
    chosen = [crop for crop in CROPS if crop < len(pictures)]
    pictures, sharp = pictures[chosen], sharp[chosen]
    with torch.no_grad():
        restored = [(row.name, row.runs[0].network(pictures)) for row in comparison.rows]
    columns = [("sharp", sharp), ("blurred", pictures), *restored]
    figure, axes = plt.subplots(
        len(chosen), len(columns), figsize=(1.45 * len(columns), 1.6 * len(chosen)), layout="constrained", squeeze=False
    )
    for (name, column), line in zip(columns, axes.T, strict=True):
        for picture, truth, ax in zip(column, sharp, line, strict=True):
            ax.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
            if name != "sharp":
                ax.set_title(f"{_psnr(picture, truth):.1f} dB", fontsize=8)
        line[0].set_title(f"{name}\n{line[0].get_title()}", fontsize=9)
    return figure


def distances(comparison: Comparison) -> Figure | None:
    """Distance of untrained networks, which are the algorithm itself, to its optimum, against their depth."""
    if comparison.task.name != "deblur":
        return None
    pictures = comparison.task.sample(32)[0].double()
    best = optimum(pictures)
    figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
    kinds = [(method, alpha) for method in ("pgd", "fista") for alpha in (1.0, 0.0)]
    for (method, alpha), line in zip(kinds, LINES, strict=False):
        errors = []
        for depth in DEPTHS:
            with torch.no_grad():
                value = unrolled(method, alpha, depth).double()(pictures)
            errors.append(((value - best).norm() / best.norm()).item())
        ax.plot(DEPTHS, errors, line, marker=".", label=f"{method}, alpha = {alpha:g}")
    ax.set(
        xlabel="layers",
        ylabel="‖z − x*‖ / ‖x*‖",
        xscale="log",
        yscale="log",
        title="Untrained networks are the algorithm: distance to its optimum x*",
    )
    ax.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
    ax.minorticks_off()
    ax.legend()
    return figure


def _psnr(picture: Any, truth: Any) -> float:
    return float(-10 * torch.log10((picture - truth).square().mean()))
