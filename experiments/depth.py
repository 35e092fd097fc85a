"""Seconds against depth: layers one after the other, side by side, and swept."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from rich import box
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from implicit.plots import LINES
from models import OptDNN, Parallel, lyapunov_exponent
from models.blocks import attention
from models.branches import Branches
from models.methods import METHODS

from .device import chosen_device
from .errors import InputError
from .figures import COLOURS, STYLE
from .folder import run_folder, write_results
from .table import terminal
from .timing import Runs, by_turns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKENS, HEADS = 17, 3
SWEEPS = (1, 2, 4)
REPEATS = 7
Seconds = dict[str, list[float]]


def networks(width: int, depth: int) -> dict[str, nn.Module]:
    """Transformer blocks in every reading: so many layers, on tokens (batch, tokens, width)."""
    blocks = attention(width, 4 * width, heads=HEADS)
    serial = OptDNN("gd", [blocks.free() for _ in range(depth)])
    proximal = OptDNN("pgd", [METHODS["pgd"].layer(blocks) for _ in range(depth)], alpha=0.0)
    found: dict[str, nn.Module] = {
        "serial": serial,
        "implicit (pgd)": proximal,
        "Para-Former, batched": Branches(depth, depth=1, width=width, heads=HEADS, hidden=4 * width),
    }
    for sweeps in SWEEPS:
        if sweeps <= depth:
            found[f"{sweeps} sweep{'s' * (sweeps > 1)}"] = Parallel(serial, sweeps)
    return found


def seconds_of(width: int, batch: int, depth: int, device: str, repeats: int = REPEATS) -> dict[str, Seconds]:
    """Of inference and of a training step: network → seconds of each repeat, by turns."""
    torch.manual_seed(0)
    x = torch.randn(batch, TOKENS, width, device=device)
    found = {name: network.to(device) for name, network in networks(width, depth).items()}

    def finished(value: Tensor) -> None:
        if value.is_cuda:
            torch.cuda.synchronize()

    def infer(network: nn.Module) -> None:
        with torch.inference_mode():
            finished(network(x))

    def learn(network: nn.Module) -> None:
        loss = network(x).square().mean()
        loss.backward()
        finished(loss)

    def timed(run: Callable[[nn.Module], None], training: bool) -> Seconds:
        for network in found.values():
            run(network.train(training))  # the first takes memory and moves weights
        runs: Runs = {name: partial(run, network) for name, network in found.items()}
        return by_turns(runs, repeats, warm=False)

    return {"inference": timed(infer, False), "training step": timed(learn, True)}


def sweep_errors(width: int, depth: int, device: str) -> tuple[dict[int, float], float]:
    """Relative error of the output after so many sweeps, and the largest Lyapunov exponent a layer."""
    torch.manual_seed(0)
    net = networks(width, depth)["serial"].to(device).eval()
    assert isinstance(net, OptDNN)
    x = torch.randn(4, TOKENS, width, device=device)
    with torch.no_grad():
        exact = net(x)
        errors = {
            sweeps: float((Parallel(net, sweeps)(x) - exact).norm() / exact.norm())
            for sweeps in (*SWEEPS, depth)
            if sweeps <= depth
        }
    return errors, float(lyapunov_exponent(net, x).max())


def measure(
    widths: Sequence[int], batches: Sequence[int], depths: Sequence[int], device: str, repeats: int = REPEATS
) -> list[dict[str, Any]]:
    """A record for each width, batch and depth."""
    grid = list(itertools.product(widths, batches, depths))
    records = []
    for width, batch, depth in track(grid, "seconds against depth", console=terminal()):
        errors, exponent = sweep_errors(width, depth, device)
        records.append(
            {
                "width": width,
                "batch": batch,
                "depth": depth,
                "seconds": seconds_of(width, batch, depth, device, repeats),
                "errors": errors,
                "exponent": exponent,
            }
        )
    return records


def draw(records: list[dict[str, Any]], device: str) -> Figure:
    """Median seconds, a row of panels for each width and batch, a column for inference and for training."""
    settings = list(dict.fromkeys((record["width"], record["batch"]) for record in records))
    kinds = ("inference", "training step")
    size: dict[str, Any] = {"figsize": (9.5, 0.6 + 2.9 * len(settings)), "layout": "constrained"}
    figure, axes = plt.subplots(len(settings), len(kinds), squeeze=False, sharex=True, **size)
    for line, (width, batch) in zip(axes, settings, strict=True):
        chosen = [record for record in records if (record["width"], record["batch"]) == (width, batch)]
        for ax, kind in zip(line, kinds, strict=True):
            names = list(dict.fromkeys(name for record in chosen for name in record["seconds"][kind]))
            for number, name in enumerate(names):
                times = {r["depth"]: r["seconds"][kind][name] for r in chosen if name in r["seconds"][kind]}
                middle = [1e3 * statistics.median(values) for values in times.values()]
                low, high = ([1e3 * edge(values) for values in times.values()] for edge in (min, max))
                colour = COLOURS[number % len(COLOURS)]
                style = LINES[number % len(LINES)]
                ax.plot(list(times), middle, style, marker="osD^vP"[number % 6], markersize=4, color=colour, label=name)
                ax.fill_between(list(times), low, high, color=colour, alpha=0.12, linewidth=0)
            ax.set(xscale="log", yscale="log", title=f"{kind}, width {width}, batch {batch}", ylabel="ms")
            depths = sorted({record["depth"] for record in chosen})
            ax.set_xticks(depths, [str(depth) for depth in depths])
            ax.minorticks_off()
    for ax in axes[-1]:
        ax.set_xlabel("layers")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle(f"Seconds against depth, transformer blocks on {TOKENS} tokens, {device} (bands: all repeats)")
    return figure


def depth(*, widths: list[int], batches: list[int], depths: list[int], out: Path | None, device: str) -> Path:
    """Measure and draw; returns the path of the figure."""
    console, device = terminal(), chosen_device(device)
    odd = [width for width in widths if width % HEADS]
    if odd:
        raise InputError(f"--widths {odd[0]} is not a multiple of the {HEADS} heads of the attention")
    with run_folder(out, "depth") as (folder, final):
        records = measure(widths, batches, depths, device)
        with plt.rc_context(STYLE):  # type: ignore[arg-type]
            figure = draw(records, device)
            figure.savefig(folder / "depth.png", dpi=150)
            plt.close(figure)
        write_results(folder, {"device": device, "threads": torch.get_num_threads(), "records": records})
    for record in records:
        console.print(_table(record))
    console.print(f"figure: {final / 'depth.png'}", soft_wrap=True, highlight=False)
    return final / "depth.png"


def _table(record: dict[str, Any]) -> Table:
    """Times as ratios to the serial network's, beside what the sweeps leave of error."""
    title = f"{record['depth']} layers of width {record['width']}, batch {record['batch']}"
    exponent = f"largest Lyapunov exponent {record['exponent']:+.2f} a layer"
    table = Table(title=f"{title}; {exponent}", box=box.SIMPLE_HEAD)
    for heading in ("network", "inference ms", "÷ serial", "training ms", "÷ serial", "relative error"):
        table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    by_name = {f"{k} sweep{'s' * (k > 1)}": error for k, error in record["errors"].items()} | {"serial": 0.0}
    for name in record["seconds"]["inference"]:
        cells = [name]
        for times in record["seconds"].values():
            ratio = statistics.median(a / b for a, b in zip(times[name], times["serial"], strict=True))
            cells += [f"{1e3 * statistics.median(times[name]):.2f}", f"{ratio:.2f}"]
        table.add_row(*cells, f"{by_name[name]:.1e}" if name in by_name else "another network")
    return table
