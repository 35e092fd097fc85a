"""Universality measured: the error of narrow networks against their depth."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import scipy.stats
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

mpl.use("Agg")
import matplotlib.pyplot as plt

from implicit.plots import LINES
from models import Method
from models.networks import vector_network
from models.readings import Reading

from .device import chosen_device
from .errors import InputError
from .families import readings
from .figures import COLOURS, STYLE
from .folder import run_folder
from .measure import score
from .tasks import Source, telgarsky
from .training import train

WIDTH = 4
"""Of the state and of the layer inside each transform."""


@dataclass(frozen=True)
class Slope:
    """Exponent p of error ∝ depth^p, by least squares on the logarithms of all runs, with its 95 % interval."""

    value: float
    low: float
    high: float


def network(method: Method, reading: Reading, depth: int) -> nn.Module:
    """A narrow network on the interval, of so many layers."""
    return vector_network(1, 1, method, reading=reading, width=WIDTH, hidden=WIDTH, depth=depth)


def fitted_slope(errors: dict[int, list[float]]) -> Slope:
    """From the errors of all seeds at each depth; at least three runs in all, at two depths or more."""
    points = [(math.log(depth), math.log(error)) for depth, values in errors.items() for error in values]
    fit = scipy.stats.linregress(*zip(*points))
    half = float(scipy.stats.t.ppf(0.975, len(points) - 2) * fit.stderr)
    return Slope(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)


def universality(
    *, models: str, depths: list[int], epochs: int | None, seeds: int, out: Path | None, device: str
) -> Path:
    """Train every network at every depth on Telgarsky's function; returns the path of the figure."""
    console, known, device = Console(), readings(network), chosen_device(device)
    names = [name.strip() for name in models.split(",")]
    for name in names:
        if name not in known:
            raise InputError(f"unknown model {name!r} in --models: choose from {', '.join(known)}")
    if len(depths) < 2 or seeds * len(depths) < 3:
        raise InputError("a slope needs two depths and three runs: name more in --depths, or raise --seeds")
    task = telgarsky(Source())
    epochs = task.epochs if epochs is None else epochs
    errors: dict[str, dict[int, list[float]]] = {name: {depth: [] for depth in depths} for name in names}
    with run_folder(out, "universality") as (folder, final):
        for name in names:
            for depth in depths:
                for seed in range(seeds):
                    console.print(f"[bold]{name}[/], {depth} layers of width {WIDTH}, seed {seed}", highlight=False)
                    torch.manual_seed(seed)
                    net = known[name].build(depth)
                    run = f"{name}-{depth}"
                    train(net, task, epochs=epochs, seed=seed, device=device, folder=folder, name=run)
                    errors[name][depth].append(score(net.to(device).eval(), task, device))
        slopes = {name: fitted_slope(errors[name]) for name in names}
        _draw(errors, slopes, folder / "universality.png")
        numbers = {
            "task": task.description,
            "width": WIDTH,
            "epochs": epochs,
            "mean squared error": errors,
            "slopes": {name: vars(slope) for name, slope in slopes.items()},
        }
        (folder / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
    table = Table(title="mean squared error against depth, median over the seeds", box=box.SIMPLE_HEAD)
    for heading in ("network", *map(str, depths), "slope", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    for name, slope in slopes.items():
        medians = (f"{sorted(values)[len(values) // 2]:.1e}" for values in errors[name].values())
        table.add_row(name, *medians, f"{slope.value:.2f}", f"[{slope.low:.2f}, {slope.high:.2f}]")
    console.print(table)
    console.print(f"figure: {final / 'universality.png'}", soft_wrap=True, highlight=False)
    return final / "universality.png"


def _draw(errors: dict[str, dict[int, list[float]]], slopes: dict[str, Slope], path: Path) -> None:
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
        for number, (name, by_depth) in enumerate(errors.items()):
            colour = COLOURS[number % len(COLOURS)]
            depths = list(by_depth)
            middle = [math.exp(sum(map(math.log, values)) / len(values)) for values in by_depth.values()]
            label = f"{name}: error ∝ depth^{slopes[name].value:.2f}"
            ax.plot(depths, middle, LINES[number % len(LINES)], marker="o", color=colour, label=label)
            for depth, values in by_depth.items():
                ax.scatter([depth] * len(values), values, s=8, color=colour, alpha=0.5)
        ax.set(
            xlabel="layers",
            ylabel="mean squared error",
            xscale="log",
            yscale="log",
            title=f"Telgarsky's function by networks of width {WIDTH} (lines: geometric mean over the seeds)",
        )
        ax.set_xticks(depths, [str(depth) for depth in depths])
        ax.minorticks_off()
        ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
        figure.savefig(path, dpi=150)
        plt.close(figure)
