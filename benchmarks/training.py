"""Training a small equilibrium classifier: ours and torchdeq's, from the same weights on the same batches."""

from __future__ import annotations

import importlib
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.measuring.timing import Runs, by_turns
from implicit import ConvergenceWarning, Equilibrium, Gradient, ImplicitGradient, PhantomGradient
from solvers import GMRES, Anderson, Broyden, Picard, Solver

from .cells import DenseCell
from .differentiation import Counter
from .peers import TORCHDEQ, installed, torchdeq_equilibrium
from .problem import normal
from .report import Cell, Progress, Table
from .run import run

WIDTH, BATCH, EPOCHS = 128, 64, 8
RTOL = 1e-3
STEPS = 60
"""Largest number of steps, forward and backward."""
RATE = 5e-4
SEEDS = 3

Solved = Callable[[nn.Module, Tensor], Tensor]
"""(cell, x) → its equilibrium, differentiable."""
OURS: dict[str, tuple[Solver, Gradient]] = {
    "ours, default": (Anderson(), ImplicitGradient(rtol=RTOL, max_steps=STEPS)),
    "ours, plain": (Picard(), ImplicitGradient(Picard(), rtol=RTOL, max_steps=STEPS)),
    "ours, Broyden": (Broyden(), ImplicitGradient(Broyden(), rtol=RTOL, max_steps=STEPS)),
    "ours, Anderson and GMRES": (Anderson(), ImplicitGradient(GMRES(), rtol=RTOL, max_steps=STEPS)),
    "ours, PhantomGradient(1)": (Anderson(), PhantomGradient(1)),
}


class Counted(nn.Module):
    """A cell that counts its evaluations, the rows in them, and the products with its Jacobian."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.counter = cell, Counter()
        self.calls = self.rows = 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        self.rows += len(z)
        image: Tensor = self.cell(z, x)
        return self.counter.through(image) if image.requires_grad else image


class Classifier(nn.Module):
    """`head(z*)`, `z* = tanh(W z* + U x)`; weights from a seed, W of norm about 1 at first."""

    def __init__(self, solved: Solved, seed: int) -> None:
        super().__init__()
        first = 10 * seed
        inner, inject = (0.5 * normal(first + k, WIDTH, WIDTH).float() / WIDTH**0.5 for k in (1, 2))
        self.cell = Counted(DenseCell(inner, inject))
        self.encoder, self.head, self.solved = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10), solved
        for k, layer in ((3, self.encoder), (4, self.head)):
            layer.weight.data = normal(first + k, *layer.weight.shape).float() / layer.in_features**0.5
            layer.bias.data.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 64) → (batch, 10)."""
        logits: Tensor = self.head(self.solved(self.cell, self.encoder(images)))
        return logits


class Run:
    """One contestant's training from one seed: its network, its optimiser, what it has counted."""

    def __init__(self, solved: Solved, seed: int, data: tuple[Tensor, ...]) -> None:
        self.network, self.seed = Classifier(solved, seed), seed
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=RATE)
        self.images, self.labels, self.test_images, self.test_labels = data
        self.epochs = self.steps = 0
        self.accuracies: list[float] = []
        self.warned = 0

    def epoch(self) -> None:
        """Once through the data, in an order that the seed and the number of the epoch decide."""
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(100 * self.seed + self.epochs))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            for batch in order.split(BATCH):
                loss = F.cross_entropy(self.network(self.images[batch]), self.labels[batch])
                self.optimiser.zero_grad()
                loss.backward()
                self.optimiser.step()
                self.steps += 1
        self.warned += sum(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        self.epochs += 1

    @torch.no_grad()
    def test(self) -> None:
        """Record the accuracy in %; its evaluations are not counted."""
        cell = self.network.cell
        before = cell.calls, cell.rows
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            right = self.network(self.test_images).argmax(1) == self.test_labels
        cell.calls, cell.rows = before
        self.accuracies.append(100 * right.double().mean().item())


def compare(quick: bool, folder: Path) -> None:
    """Measure everything, print it and write `training.json` and `training.png` into the folder."""
    run("training", _tables, ("torchdeq",), quick, folder)


def _tables(quick: bool, progress: Progress) -> Iterator[tuple[str, Table]]:
    seeds = range(1 if quick else SEEDS)
    data = _digits(320 if quick else None)
    runs = {name: [Run(solved, seed, data) for seed in seeds] for name, solved in _contestants().items()}
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in seeds] for name in runs}
    epochs = 2 if quick else EPOCHS
    for seed in seeds:
        for number in range(epochs):
            progress(f"training: seed {seed + 1} of {len(seeds)}, epoch {number + 1} of {epochs}, each in turn")
            turns: Runs = {name: its[seed].epoch for name, its in runs.items()}
            for name, found in by_turns(turns, 1, warm=False).items():
                seconds[name][seed] += found
                runs[name][seed].test()
    yield "training", _summary(runs, seconds)
    yield (
        "accuracy",
        _by_epoch(
            {name: [one.accuracies for one in its] for name, its in runs.items()},
            "Accuracy on the test digits after each epoch, %, mean over the seeds",
            f"the same weights, batches of {BATCH} and order for all; Adam at {RATE:g}; 360 of 1,797 digits to test.",
        ),
    )
    title = "Seconds of each epoch, each in turn, mean over the seeds"
    yield "seconds", _by_epoch(seconds, title, "the first includes what is loaded once.")


def _summary(runs: dict[str, list[Run]], seconds: dict[str, list[list[float]]]) -> Table:
    spent = {name: [one for its in found for one in its] for name, found in seconds.items()}
    best = min((name for name in runs if name.startswith("torchdeq")), key=lambda name: sum(spent[name]), default=None)
    rows: list[dict[str, Cell]] = []
    for name, its in runs.items():
        steps, shown = sum(one.steps for one in its), sum(one.epochs * len(one.images) for one in its)
        cells = [one.network.cell for one in its]
        row: dict[str, Cell] = {"trained with": name, "seconds": sum(spent[name]) / len(its)}
        if best is not None:
            ratios = [ours / theirs for ours, theirs in zip(spent[name], spent[best])]
            row |= {"ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        scores = [one.accuracies[-1] for one in its]
        row |= {
            "evaluations a step": sum(cell.calls for cell in cells) / steps,
            "rows a row": sum(cell.rows for cell in cells) / shown,
            "products a step": sum(cell.counter.calls for cell in cells) / steps - 1,
            "accuracy, %": statistics.mean(scores),
            "least, %": min(scores),
            "largest, %": max(scores),
            "steps warned": sum(one.warned for one in its) if name.startswith("ours") else None,
        }
        rows.append(row)
    one = next(iter(runs.values()))[0]
    return Table(
        f"Training an equilibrium classifier on scikit-learn's digits, {one.epochs} epochs, seeds: {len(its)}",
        rows,
        [
            f"tanh cell of width {WIDTH}, float32, batches of {BATCH}; {RTOL:g} relative forward and backward on both "
            f"sides, at most {STEPS} steps each; ours in every row, torchdeq until its slowest row is there. ratio: of "
            "an epoch's seconds to torchdeq's fastest, median, least and largest of the epochs of all seeds.",
            "evaluations of the cell and products with its Jacobian (the last one left out) a training step; rows a "
            "row: evaluations of single rows over the rows trained on, less where finished rows are dropped. accuracy: "
            "of the seeds after the last epoch, mean, least and largest. warned: convergence warnings; torchdeq has "
            "none. ours, plain, Anderson and Broyden solve backward with the same.",
        ],
    )


def _by_epoch(values: dict[str, list[list[float]]], title: str, note: str) -> Table:
    count = len(next(iter(values.values()))[0])
    rows: list[dict[str, Cell]] = [
        {"epoch": epoch + 1, **{name: statistics.mean(one[epoch] for one in its) for name, its in values.items()}}
        for epoch in range(count)
    ]
    return Table(title, rows, [note])


def _digits(count: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in [0, 1] and labels to train on, at most `count`, and 360 to test on; the split is fixed."""
    found = importlib.import_module("sklearn.datasets").load_digits()
    images, labels = torch.from_numpy(found.data).float() / 16, torch.from_numpy(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[360:][:count], order[:360]
    return images[train], labels[train], images[test], labels[test]


def _contestants() -> dict[str, Solved]:
    found: dict[str, Solved] = {name: partial(_ours, solver, gradient) for name, (solver, gradient) in OURS.items()}
    if installed("torchdeq"):
        peer = partial(torchdeq_equilibrium, rtol=RTOL, steps=STEPS)
        found |= {f"torchdeq, {name}": partial(peer, method) for name, method in TORCHDEQ.items()}
    return found


def _ours(solver: Solver, gradient: Gradient, cell: nn.Module, x: Tensor) -> Tensor:
    z = Equilibrium(cell, solver=solver, gradient=gradient, rtol=RTOL, atol=0.0, max_steps=STEPS)(x)
    assert isinstance(z, Tensor)  # as x is
    return z
