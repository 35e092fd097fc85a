"""Whether the gradient's error depends on the unit of the loss."""

from __future__ import annotations

from implicit import ImplicitGradient

from .cells import CASES, Case
from .differentiation import Layer, gradient_of, ours, torchdeq
from .exact import exact, relative_error
from .peers import installed
from .report import Cell, Progress, Table

SCALES = (1e-9, 1e-7, 1.0, 1e6)
NAME = "symmetric 0.99"
FORWARD = 1e-6
"""Relative tolerance of our forward solve, near what single precision resolves."""


def loss_scale(quick: bool, progress: Progress) -> Table:
    """Error of each gradient, with the defaults of its backward solve."""
    reference = exact(NAME)
    case = CASES[NAME]()
    case = Case(case.cell.float(), case.x.float(), case.weight.float())
    layers: dict[str, Layer] = {"ImplicitGradient()": ours(ImplicitGradient(), rtol=FORWARD)}
    if installed("torchdeq"):
        layers["torchdeq ift=True"] = torchdeq(reference.solution.float(), {})
    rows: list[dict[str, Cell]] = []
    for name, layer in layers.items():
        progress(f"loss scale: {name}")
        row: dict[str, Cell] = {"gradient": name}
        for scale in SCALES:
            scaled = gradient_of(Case(case.cell, case.x, scale * case.weight), layer).double() / scale
            row[f"loss × {scale:g}"] = relative_error(scaled, reference.gradient)
        rows.append(row)
    return Table(
        f"Loss scale: relative error of the gradient, {NAME}, float32",
        rows,
        [f"against dense linear algebra in float64; z* to {FORWARD:g}; the default backward solves."],
    )
