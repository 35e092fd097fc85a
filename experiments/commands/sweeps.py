"""Train with K sweeps over the depth, run with K': accuracy and latency of one network between parallel and serial."""

from __future__ import annotations

import itertools
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from torch import nn

from implicit.plots import COLOURS, LINES, MARKERS
from models import Parallel
from models.blocks import convolutional
from models.networks import image_network
from models.readings import Sweeps

from ..failures import Failure
from ..measuring.measure import latency, score
from ..reporting.table import terminal
from ..running.pieces import in_pieces
from ..tasks.small import digits
from ..training.device import chosen_device
from ..training.train import train

DEPTH = 8
TRAINED = (1, 2, 4, 8)
BATCH = 64
"""Batch size at which the latency is measured."""


def network(sweeps: int) -> nn.Module:
    """Residual layers on 8×8 pictures, evaluated in `sweeps` sweeps."""
    return image_network(
        1,
        10,
        "gd",
        reading=Sweeps(sweeps),
        blocks=lambda width: convolutional(width, width),
        widths=(16,),
        depths=(DEPTH,),
        pool=4,
    )


def sweeps(*, epochs: int | None, seeds: int, out: Path | None, device: str, resume: Path | None) -> list[Failure]:
    """Train, run with every number of sweeps, draw and return the failures."""
    console, device = terminal(), chosen_device(device)
    task = digits()
    epochs = task.epochs if epochs is None else epochs
    accuracy: dict[int, dict[int, list[float]]] = {k: {run: [] for run in range(1, DEPTH + 1)} for k in TRAINED}
    seconds: dict[int, list[float]] = {run: [] for run in range(1, DEPTH + 1)}
    inputs, _ = task.sample(BATCH)
    settings = {"epochs": epochs, "seeds": seeds, "device": device}
    with in_pieces("sweeps", settings, out, resume, console) as run:

        def trained(count: int, seed: int) -> dict[int, tuple[float, float]]:
            """Accuracy and latency when run with each number of sweeps."""
            torch.manual_seed(seed)
            net, place = network(count), f"{count}-sweeps"
            options: dict[str, Any] = {"epochs": epochs, "seed": seed, "device": device, "resume": resume is not None}
            train(net, task, folder=run.folder, name=place, **options)
            net.to(device).eval()
            found = {}
            for number in seconds:
                _set_sweeps(net, number)
                found[number] = score(net, task, device), latency(net, inputs.to(device))
            return found

        for count, seed in itertools.product(TRAINED, range(seeds)):
            console.print(f"trained with [bold]{count}[/] of {DEPTH} sweeps, seed {seed}", highlight=False)
            what = f"the training with {count} sweeps, seed {seed}"
            found = run.piece(f"{count}-sweeps-seed-{seed}", what, partial(trained, count, seed))
            for number, (share, time) in (found or {}).items():
                accuracy[count][number].append(share)
                seconds[number].append(time)
            numbers = {"task": task.description, "layers": DEPTH, "accuracy": accuracy, "seconds": seconds}
            run.results({**numbers, "batch": BATCH})
        if any(seconds.values()):
            run.figure("sweeps", lambda: _drawn(accuracy, seconds))
        table = Table(title="accuracy %, mean over the seeds: trained with K sweeps (rows), run with K' (columns)")
        table.box = box.SIMPLE_HEAD
        for heading in ("K \\ K'", *map(str, seconds)):
            table.add_column(heading, justify="right", no_wrap=True)
        for count, by_run in accuracy.items():
            means = (f"{100 * statistics.fmean(values):.1f}" if values else "–" for values in by_run.values())
            table.add_row(str(count), *means)
        medians = (f"{1e3 * statistics.median(values):.1f}" if values else "–" for values in seconds.values())
        table.add_row("ms", *medians)
        console.print(table)
    return run.failures.found


def _set_sweeps(net: nn.Module, count: int) -> None:
    for module in net.modules():
        if isinstance(module, Parallel):
            module.sweeps = count


def _drawn(accuracy: dict[int, dict[int, list[float]]], seconds: dict[int, list[float]]) -> Figure:
    size: dict[str, Any] = {"figsize": (9, 3.8), "layout": "constrained"}
    figure, (left, right) = plt.subplots(1, 2, **size)
    for number, (trained, by_run) in enumerate(accuracy.items()):
        known = {run: values for run, values in by_run.items() if values}
        colour = COLOURS[number % len(COLOURS)]
        means = [100 * statistics.fmean(values) for values in known.values()]
        low, high = ([100 * edge(values) for values in known.values()] for edge in (min, max))
        style = LINES[number % len(LINES)]
        left.plot(
            list(known),
            means,
            style,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            color=colour,
            label=trained,
        )
        left.fill_between(list(known), low, high, color=colour, alpha=0.15, linewidth=0)
    left.set(xlabel="sweeps when run, K'", ylabel="test accuracy (%)", title="Trained with K sweeps, run with K'")
    left.legend(title="trained with K")
    right.plot(list(seconds), [1e3 * statistics.median(values) for values in seconds.values()], marker="o")
    right.set(xlabel="sweeps when run, K'", ylabel="ms", title=f"Latency, batch {BATCH} (median)")
    right.set_ylim(bottom=0)
    for ax in (left, right):
        ax.set_xticks(list(seconds))
    figure.suptitle(f"Handwritten digits by {DEPTH} residual layers: from one parallel sweep to serial (bands: seeds)")
    return figure
