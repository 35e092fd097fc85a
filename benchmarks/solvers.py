"""The solvers beside their peers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from .evaluations import evaluations
from .frugality import heterogeneous, monotone, scaled
from .memory import memory
from .overhead import compiled, overhead
from .peers import PEERS
from .report import Progress, Table
from .run import Measurement, run
from .safety import believed, failed_safely

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
    run("solvers", _tables, PEERS, quick, folder)


def _tables(quick: bool, progress: Progress) -> Iterator[tuple[str, Table]]:
    yield "overhead", overhead(quick, progress)
    yield "compiled", compiled(quick, progress)
    torch.set_num_threads(1)  # from here on nothing is timed, and small problems are fastest so
    for digits in (4, 8):
        for part, table in evaluations(digits, quick, progress).items():
            yield f"evaluations_1e-{digits}_{part}", table
    for name, measure in MEASUREMENTS.items():
        yield name, measure(quick, progress)
