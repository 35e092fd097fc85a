"""Seconds of one forward and backward pass, ours and torchdeq's timed in turn."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from experiments.measuring.timing import Runs, by_turns
from implicit import (
    ConvergenceWarning,
    Equilibrium,
    Gradient,
    ImplicitGradient,
    NeumannGradient,
    PhantomGradient,
    ShineGradient,
)
from solvers import GMRES, Anderson, Broyden, Picard, Solver

from .cells import ConvolutionalCell, DenseCell
from .counting import row_norms
from .peers import TORCHDEQ, installed, torchdeq_equilibrium
from .problem import normal
from .report import Cell, Progress, Table

RTOL = 1e-4
STEPS = 60
"""Largest number of steps, forward and backward."""


def _implicit(solver: Solver) -> Gradient:
    return ImplicitGradient(solver, rtol=RTOL, max_steps=STEPS)


OURS: dict[str, tuple[Solver, Gradient]] = {
    "default": (Anderson(), ImplicitGradient(rtol=RTOL, max_steps=STEPS)),
    "Picard": (Picard(), _implicit(Picard())),
    "Broyden": (Broyden(), _implicit(Broyden())),
    "Anderson, GMRES": (Anderson(), _implicit(GMRES())),
}
CHEAP: dict[str, tuple[Solver, Gradient]] = {
    "Anderson, PhantomGradient(1)": (Anderson(), PhantomGradient(1)),
    "Anderson, ShineGradient()": (Anderson(), ShineGradient()),
    "Anderson, NeumannGradient(5)": (Anderson(), NeumannGradient(5)),
}
"""Forward solver and gradient; the backward solver is the second one named, or the forward one."""
Forward = Callable[[nn.Module, Tensor], Tensor]
"""(cell, x) → its equilibrium, differentiable."""


def convolutional(batch: int, channels: int, size: int) -> tuple[nn.Module, Tensor]:
    """A cell of two convolutions with GroupNorm, and its input."""
    hidden = 4 * channels // 3
    inner, outer = 0.02 * normal(1, hidden, channels, 3, 3), 0.02 * normal(2, channels, hidden, 3, 3)
    cell = ConvolutionalCell(inner.float(), outer.float(), groups=4)
    return cell, normal(3, batch, channels, size, size).float()


def dense(batch: int, dim: int) -> tuple[nn.Module, Tensor]:
    """A tanh layer, and its input."""
    inner, inject = (scale * normal(seed, dim, dim).float() / dim**0.5 for seed, scale in ((1, 0.87), (2, 0.58)))
    return DenseCell(inner, inject), normal(3, batch, dim).float()


SETTINGS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "convolutional 32×24×16×16": partial(convolutional, 32, 24, 16),
    "dense 256×128": partial(dense, 256, 128),
    "dense 32×512": partial(dense, 32, 512),
}


def training_step(quick: bool, progress: Progress) -> Table:
    """Times of every configuration whose rows all meet the tolerance."""
    rows: list[dict[str, Cell]] = []
    ratios: dict[str, list[float]] = {}
    for name in list(SETTINGS)[1:] if quick else SETTINGS:
        progress(f"training step: {name}")
        cell, x = SETTINGS[name]()
        forwards = {label: forward for label, forward in _forwards().items() if reaches(forward, cell, x)}
        steps: Runs = {label: partial(one_step, forward, cell, x) for label, forward in forwards.items()}
        by_turns(steps, 1, warm=False)
        times = by_turns(steps, 2 if quick else 9, warm=False)
        medians = {label: statistics.median(found) for label, found in times.items()}
        best = min((label for label in medians if label.startswith("torchdeq")), key=medians.__getitem__, default=None)
        for label, found in times.items():
            row: dict[str, Cell] = {"cell": name, "step": label, "ms": 1e3 * medians[label]}
            if best is not None:
                against = [one / other for one, other in zip(found, times[best])]
                ratios.setdefault(label, []).append(statistics.median(against))
                row |= {"ratio": ratios[label][-1], "min": min(against), "max": max(against)}
            rows.append(row)
        if best is not None:
            exact = min((label for label in OURS if label in medians), key=medians.__getitem__)
            ratios.setdefault("our best exact", []).append(ratios[exact][-1])
    rows += [
        {"cell": "geometric mean", "step": label, "ratio": statistics.geometric_mean(found)}
        for label, found in ratios.items()
        if len(found) == len(ratios["our best exact"])
    ]
    return Table(
        "Training step: ms of one forward and backward, float32",
        rows,
        [
            "ms: median; ratio: over torchdeq's best on that cell, median, least and largest of repeats in turn.",
            f"{RTOL:g} relative forward and backward on both sides, at most {STEPS} steps; only what meets it forward "
            "in each row takes part. torchdeq: ift=True, one solver for both. Phantom, Shine and Neumann: inexact.",
        ],
    )


def _forwards() -> dict[str, Forward]:
    forwards: dict[str, Forward] = {
        label: partial(_ours, solver, gradient) for label, (solver, gradient) in (OURS | CHEAP).items()
    }
    if installed("torchdeq"):
        peer = partial(torchdeq_equilibrium, rtol=RTOL, steps=STEPS)
        forwards |= {f"torchdeq {name}": partial(peer, method) for name, method in TORCHDEQ.items()}
    return forwards


def _ours(solver: Solver, gradient: Gradient, cell: nn.Module, x: Tensor) -> Tensor:
    z = Equilibrium(cell, solver=solver, gradient=gradient, rtol=RTOL, max_steps=STEPS)(x)
    assert isinstance(z, Tensor)  # as x is
    return z


def one_step(forward: Forward, cell: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: the gradient in the parameters."""
    return torch.autograd.grad(forward(cell, x).square().mean(), tuple(cell.parameters()))


@torch.no_grad()
def reaches(forward: Forward, cell: nn.Module, x: Tensor) -> bool:
    """Whether every row meets the tolerance, checked by one more evaluation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        z = forward(cell, x)
    image = cell(z, x)
    return bool((row_norms(image - z) <= 1.05 * RTOL * row_norms(image)).all())
