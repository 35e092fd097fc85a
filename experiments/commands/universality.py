"""Universality measured: the error of narrow networks against their depth."""

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

from implicit.plots import COLOURS, LINES
from models import Method
from models.networks import vector_network
from models.readings import Reading

from ..contestants.readings import readings
from ..errors import InputError
from ..failures import Failure
from ..measuring.measure import score
from ..names import unknown
from ..reporting.statistics import Slope, fitted_slope
from ..reporting.table import terminal
from ..running.pieces import in_pieces
from ..tasks.small import telgarsky
from ..training.device import chosen_device
from ..training.train import train

WIDTH = 6
"""Width of the state and of each transform's hidden layer: a single layer has fewer kinks than the function."""
EPOCHS = 30
"""With fewer, many deep networks stay at the mean of the function."""


def network(method: Method, reading: Reading, depth: int) -> nn.Module:
    """A narrow network on the interval, with `depth` layers."""
    return vector_network(1, 1, method, reading=reading, width=WIDTH, hidden=WIDTH, depth=depth)


def universality(
    *,
    models: str,
    depths: list[int],
    epochs: int | None,
    seeds: int,
    out: Path | None,
    device: str,
    resume: Path | None,
) -> list[Failure]:
    """Train every network at every depth on Telgarsky's function, draw and return the failures."""
    console, device = terminal(), chosen_device(device)
    # an equilibrium has no depth
    known = {name: row for name, row in readings(network).items() if row.reading != "equilibrium"}
    names = list(dict.fromkeys(name.strip() for name in models.split(",")))
    for name in names:
        if name not in known:
            raise unknown(name, known, "model", own=False)
    if len(depths) < 2 or seeds * len(depths) < 3:
        raise InputError("a slope needs at least two depths and three runs: name more --depths, or raise --seeds")
    task = telgarsky()
    epochs = EPOCHS if epochs is None else epochs
    errors: dict[str, dict[int, list[float]]] = {name: {depth: [] for depth in depths} for name in names}
    slopes: dict[str, Slope] = {}
    settings = {"models": models, "depths": depths, "epochs": epochs, "seeds": seeds, "device": device}
    with in_pieces("universality", settings, out, resume, console) as run:

        def trained(name: str, depth: int, seed: int) -> float:
            torch.manual_seed(seed)
            net, place = known[name].build(depth), f"{name}-{depth}"
            options: dict[str, Any] = {"epochs": epochs, "seed": seed, "device": device, "resume": resume is not None}
            train(net, task, folder=run.folder, name=place, **options)
            return score(net.to(device).eval(), task, device)

        for name, depth, seed in itertools.product(names, depths, range(seeds)):
            console.print(f"[bold]{name}[/], {depth} layers of width {WIDTH}, seed {seed}", highlight=False)
            what = f"the training of {name}, {depth} layers, seed {seed}"
            error = run.piece(f"{name}-{depth}-seed-{seed}", what, partial(trained, name, depth, seed))
            errors[name][depth] += [] if error is None else [error]
            slopes = {name: fitted_slope(errors[name]) for name in names}
            run.results(
                {
                    "task": task.description,
                    "width": WIDTH,
                    "epochs": epochs,
                    "mean squared error": errors,
                    "slopes": {name: vars(slope) for name, slope in slopes.items()},
                }
            )
        run.figure("universality", lambda: _drawn(errors, slopes))
        table = Table(title="mean squared error against depth, median over the seeds", box=box.SIMPLE_HEAD)
        for heading in ("network", *map(str, depths), "slope", "95 % interval"):
            table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
        for name, slope in slopes.items():
            medians = (f"{statistics.median(values):.1e}" if values else "–" for values in errors[name].values())
            table.add_row(name, *medians, f"{slope.value:.2f}", f"[{slope.low:.2f}, {slope.high:.2f}]")
        console.print(table)
    return run.failures.found


def _drawn(errors: dict[str, dict[int, list[float]]], slopes: dict[str, Slope]) -> Figure:
    figure, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for number, (name, by_depth) in enumerate(errors.items()):
        colour = COLOURS[number % len(COLOURS)]
        middle = {depth: statistics.median(values) for depth, values in by_depth.items() if values}
        label = f"{name}: error ∝ depth^{slopes[name].value:.2f}"
        ax.plot(*zip(*middle.items()), LINES[number % len(LINES)], marker="o", color=colour, label=label)
        for depth, values in by_depth.items():
            ax.scatter([depth] * len(values), values, s=8, color=colour, alpha=0.5)
    ax.set(
        xlabel="layers",
        ylabel="mean squared error",
        xscale="log",
        yscale="log",
    )
    figure.suptitle(f"Telgarsky's function by networks of width {WIDTH} (lines: median over the seeds)")
    depths = list(next(iter(errors.values())))
    ax.set_xticks(depths, [str(depth) for depth in depths])
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure
