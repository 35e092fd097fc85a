"""What every benchmark does: say where it runs, print each table as it is done, keep all numbers, draw a figure."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from .peers import installed, missing, versions
from .report import Progress, Table

Measurement = Callable[[bool, Progress], Table]
"""(quick, progress) → its table."""
Measurements = Callable[[bool, Progress], Iterator[tuple[str, Table]]]
"""(quick, progress) → each table under its name in the file, as soon as it is measured."""


def run(name: str, measurements: Measurements, peers: tuple[str, ...], quick: bool, folder: Path) -> None:
    """Measure everything, print it and write `NAME.json` and `NAME.png` into the folder."""
    progress = Progress()
    machine: dict[str, object] = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 1),
        **versions(peers),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    skipped = missing(peers)
    for line in skipped:
        print(line)
    tables: dict[str, Table] = {}
    path = folder / f"{name}.json"
    for key, table in measurements(quick, progress):
        tables[key] = table
        progress.clear()
        print(f"\n{table}", flush=True)
        found = {"machine": machine, "quick": quick, "seconds": progress.seconds, "skipped": skipped}
        found["tables"] = {key: asdict(table) for key, table in tables.items()}
        # after each table, so that a run cut short keeps what it has
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    print(f"\nall numbers: {path}, after {progress.seconds:.0f} s")
    if installed("matplotlib") is None:
        print("the figure is skipped: matplotlib is not installed, see pip install -e '.[bench]'")
        return
    from .figures import FIGURES  # needs matplotlib

    figure = FIGURES[name](tables)
    figure.suptitle(f"python -m benchmarks {name}: {_where(machine)}", fontsize=9)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    print(f"figure: {path.with_suffix('.png')}")


def _where(machine: dict[str, object]) -> str:
    counts = ", ".join(f"{name} {machine[name]}" for name in ("cores", "threads", "torch"))
    return f"{machine['system']}, {counts}"
