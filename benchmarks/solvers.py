"""The solvers beside their peers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from .evaluations import evaluations
from .frugality import heterogeneous, monotone, scaled
from .growth import with_batch, with_state
from .overhead import compiled, overhead
from .proximal import proximal_evaluations
from .report import Progress, Table
from .run import Measurement, run
from .safety import believed, failed_safely

PEERS = ("torchdeq", "scipy", "jaxopt", "optimistix", "deepinv")
MEASUREMENTS: dict[str, Measurement] = {
    "frugality": heterogeneous,
    "scaling": scaled,
    "monotone": monotone,
    "failed_safely": failed_safely,
    "solvable": believed,
}


def compare(quick: bool, folder: Path) -> None:
    """Measure everything, print it and write `solvers.json` and `solvers.png` into the folder."""
    run("solvers", _tables, PEERS, quick, folder)


def _tables(quick: bool, progress: Progress) -> Iterator[tuple[str, Table]]:
    yield "overhead", overhead(quick, progress)
    yield "compiled", compiled(quick, progress)
    yield "growth_state", with_state(quick, progress)
    yield "growth_batch", with_batch(quick, progress)
    torch.set_num_threads(1)  # from here on nothing is timed, and small problems run fastest on one thread
    for digits in (4, 8):
        for part, table in evaluations(digits, quick, progress).items():
            yield f"evaluations_1e-{digits}_{part}", table
    yield "proximal", proximal_evaluations(quick, progress)
    for name, measure in MEASUREMENTS.items():
        yield name, measure(quick, progress)
