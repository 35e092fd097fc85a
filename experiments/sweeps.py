"""Train with K sweeps over the depth, run with K': accuracy and latency of one network between parallel and serial."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from rich import box
from rich.table import Table
from torch import nn

from implicit.plots import LINES, MARKERS
from models import Parallel
from models.blocks import convolutional
from models.networks import image_network
from models.readings import Sweeps

from .device import chosen_device
from .figures import COLOURS, STYLE
from .folder import run_folder, write_results
from .measure import latency, score
from .table import terminal
from .tasks import TASKS, Source
from .training import train

DEPTH = 8
TRAINED = (1, 2, 4, 8)
BATCH = 64
"""For the latency."""


def network(sweeps: int) -> nn.Module:
    """Residual layers on 8×8 pictures, evaluated in so many sweeps."""
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


def sweeps(*, epochs: int | None, seeds: int, out: Path | None, device: str) -> Path:
    """Train, run with every number of sweeps, draw; returns the path of the figure."""
    console, device = terminal(), chosen_device(device)
    task = TASKS["digits"](Source())
    epochs = task.epochs if epochs is None else epochs
    accuracy: dict[int, dict[int, list[float]]] = {k: {run: [] for run in range(1, DEPTH + 1)} for k in TRAINED}
    seconds: dict[int, list[float]] = {run: [] for run in range(1, DEPTH + 1)}
    inputs, _ = task.sample(BATCH)
    with run_folder(out, "sweeps") as (folder, final):
        for trained in TRAINED:
            for seed in range(seeds):
                console.print(f"trained with [bold]{trained}[/] of {DEPTH} sweeps, seed {seed}", highlight=False)
                torch.manual_seed(seed)
                net = network(trained)
                train(net, task, epochs=epochs, seed=seed, device=device, folder=folder, name=f"{trained}-sweeps")
                net.to(device).eval()
                for run in seconds:
                    _set_sweeps(net, run)
                    accuracy[trained][run].append(score(net, task, device))
                    seconds[run].append(latency(net, inputs.to(device)))
        _draw(accuracy, seconds, folder / "sweeps.png")
        numbers = {"task": task.description, "layers": DEPTH, "accuracy": accuracy, "seconds": seconds, "batch": BATCH}
        write_results(folder, numbers)
    table = Table(title="accuracy %, mean over the seeds: trained with K sweeps (rows), run with K' (columns)")
    table.box = box.SIMPLE_HEAD
    for heading in ("K \\ K'", *map(str, seconds)):
        table.add_column(heading, justify="right", no_wrap=True)
    for trained, by_run in accuracy.items():
        table.add_row(str(trained), *(f"{100 * statistics.fmean(values):.1f}" for values in by_run.values()))
    table.add_row("ms", *(f"{1e3 * statistics.median(values):.1f}" for values in seconds.values()))
    console.print(table)
    console.print(f"figure: {final / 'sweeps.png'}", soft_wrap=True, highlight=False)
    return final / "sweeps.png"


def _set_sweeps(net: nn.Module, count: int) -> None:
    for module in net.modules():
        if isinstance(module, Parallel):
            module.sweeps = count


def _draw(accuracy: dict[int, dict[int, list[float]]], seconds: dict[int, list[float]], path: Path) -> None:
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        size: dict[str, Any] = {"figsize": (9, 3.8), "layout": "constrained"}
        figure, (left, right) = plt.subplots(1, 2, **size)
        for number, (trained, by_run) in enumerate(accuracy.items()):
            colour = COLOURS[number % len(COLOURS)]
            means = [100 * statistics.fmean(values) for values in by_run.values()]
            low, high = ([100 * edge(values) for values in by_run.values()] for edge in (min, max))
            style = LINES[number % len(LINES)]
            left.plot(
                list(by_run),
                means,
                style,
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                color=colour,
                label=trained,
            )
            left.fill_between(list(by_run), low, high, color=colour, alpha=0.15, linewidth=0)
        left.set(xlabel="sweeps when run, K'", ylabel="test accuracy (%)", title="Trained with K sweeps, run with K'")
        left.legend(title="trained with K")
        right.plot(list(seconds), [1e3 * statistics.median(values) for values in seconds.values()], marker="o")
        right.set(xlabel="sweeps when run, K'", ylabel="ms", title=f"Latency, batch {BATCH} (median)")
        right.set_ylim(bottom=0)
        for ax in (left, right):
            ax.set_xticks(list(seconds))
        figure.suptitle(
            f"Handwritten digits by {DEPTH} residual layers: from one parallel sweep to serial (bands: seeds)"
        )
        figure.savefig(path, dpi=150)
        plt.close(figure)
