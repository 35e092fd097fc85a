"""Memory of the solvers and of the gradients against their steps, beside torchdeq's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .gradient_memory import gradient_memory
from .report import Progress, Table
from .run import run
from .solver_memory import solver_memory


def compare(quick: bool, folder: Path) -> None:
    """Measure everything, print it and write `memory.json` and `memory.png` into the folder."""
    run("memory", _tables, ("torchdeq",), quick, folder)


def _tables(quick: bool, progress: Progress) -> Iterator[tuple[str, Table]]:
    yield "solvers", solver_memory(quick, progress)
    yield "gradients", gradient_memory(quick, progress)
