"""The command `implicit depth`: seconds against depth."""

from __future__ import annotations

import itertools
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.progress import track
from rich.table import Table

from ..errors import InputError
from ..failures import Failure
from ..measuring.depth_times import HEADS, measured, swept
from ..reporting.figures.depth import times_against_depth
from ..reporting.table import terminal
from ..running.pieces import in_pieces
from ..training.device import chosen_device


def depth(
    *, widths: list[int], batches: list[int], depths: list[int], out: Path | None, device: str, resume: Path | None
) -> list[Failure]:
    """Measure, draw and return the failures."""
    console, device = terminal(), chosen_device(device)
    odd = [width for width in widths if width % HEADS]
    if odd:
        raise InputError(f"--widths {odd[0]} is not a multiple of the {HEADS} attention heads")
    settings = {"widths": widths, "batches": batches, "depths": depths, "device": device}
    with in_pieces("depth", settings, out, resume, console) as run:
        records: list[dict[str, Any]] = []
        grid = list(itertools.product(widths, batches, depths))
        for width, batch, layers in track(grid, "seconds against depth", console=console):
            name = f"width-{width}-batch-{batch}-depth-{layers}"
            what = f"the measurement of {layers} layers of width {width} at batch {batch}"
            record = run.piece(name, what, partial(measured, width, batch, layers, device))
            records += [] if record is None else [record]
            run.results({"device": device, "threads": torch.get_num_threads(), "records": records})
        if records:
            run.figure("depth", lambda: times_against_depth(records, device))
        for record in records:
            console.print(_table(record))
    return run.failures.found


def _table(record: dict[str, Any]) -> Table:
    """Times, their ratios to the serial network's, and the error that the sweeps leave."""
    title = f"{record['depth']} layers of width {record['width']}, batch {record['batch']}"
    exponent = f"largest Lyapunov exponent {record['exponent']:+.2f} a layer"
    table = Table(title=f"{title}; {exponent}", box=box.SIMPLE_HEAD)
    for heading in ("network", "inference ms", "÷ serial", "training ms", "÷ serial", "relative error"):
        table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    by_name = {swept(k): error for k, error in record["errors"].items()} | {"serial": 0.0}
    for name in record["seconds"]["inference"]:
        cells = [name]
        for times in record["seconds"].values():
            ratio = statistics.median(a / b for a, b in zip(times[name], times["serial"], strict=True))
            cells += [f"{1e3 * statistics.median(times[name]):.2f}", f"{ratio:.2f}"]
        table.add_row(*cells, f"{by_name[name]:.1e}" if name in by_name else "another network")
    return table
