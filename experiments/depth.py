"""The command that shows seconds against depth."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from rich import box
from rich.table import Table

from .depth_times import HEADS, measure, swept
from .device import chosen_device
from .errors import InputError
from .figures import STYLE
from .figures.depth import times_against_depth
from .folder import run_folder, write_results
from .table import terminal


def depth(*, widths: list[int], batches: list[int], depths: list[int], out: Path | None, device: str) -> Path:
    """Measure and draw; returns the path of the figure."""
    console, device = terminal(), chosen_device(device)
    odd = [width for width in widths if width % HEADS]
    if odd:
        raise InputError(f"--widths {odd[0]} is not a multiple of the {HEADS} heads of the attention")
    with run_folder(out, "depth") as (folder, final):
        records = measure(widths, batches, depths, device)
        with plt.rc_context(STYLE):  # type: ignore[arg-type]
            figure = times_against_depth(records, device)
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
    by_name = {swept(k): error for k, error in record["errors"].items()} | {"serial": 0.0}
    for name in record["seconds"]["inference"]:
        cells = [name]
        for times in record["seconds"].values():
            ratio = statistics.median(a / b for a, b in zip(times[name], times["serial"], strict=True))
            cells += [f"{1e3 * statistics.median(times[name]):.2f}", f"{ratio:.2f}"]
        table.add_row(*cells, f"{by_name[name]:.1e}" if name in by_name else "another network")
    return table
