"""The solvers beside their peers: every table, printed as it is done, and all numbers in one file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from .evaluations import evaluations
from .frugality import heterogeneous, monotone, scaled
from .memory import memory
from .overhead import compiled, overhead
from .peers import missing, versions
from .report import Progress, Table
from .safety import believed, failed_safely

Measurement = Callable[[bool, Progress], Table]
MEASUREMENTS: dict[str, Measurement] = {
    "frugality": heterogeneous,
    "scaling": scaled,
    "monotone": monotone,
    "failed_safely": failed_safely,
    "solvable": believed,
    "memory": memory,
}


def compare(quick: bool, folder: Path) -> None:
    """Measure everything, print it and write `solvers.json` into the folder."""
    progress = Progress()
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 1),
        **versions(),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for line in missing():
        print(line)
    tables: dict[str, Table] = {}

    def done(name: str, table: Table) -> None:
        tables[name] = table
        progress.clear()
        print(f"\n{table}", flush=True)

    done("overhead", overhead(quick, progress))
    done("compiled", compiled(quick, progress))
    torch.set_num_threads(1)  # from here on nothing is timed, and small problems are fastest so
    for digits in (4, 8):
        for part, table in evaluations(digits, quick, progress).items():
            done(f"evaluations_1e-{digits}_{part}", table)
    for name, measure in MEASUREMENTS.items():
        done(name, measure(quick, progress))
    path = folder / "solvers.json"
    path.write_text(
        json.dumps(
            {
                "machine": machine,
                "quick": quick,
                "seconds": progress.seconds,
                "skipped": missing(),
                "tables": {name: asdict(table) for name, table in tables.items()},
            },
            indent=1,
            ensure_ascii=False,
            allow_nan=False,
        )
    )
    print(f"\nall numbers: {path}, after {progress.seconds:.0f} s")
