"""Times of a step and of a training step on a CUDA device, beside torchdeq and JAX."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from .device_clock import described
from .device_steps import SHAPES, step_times
from .device_training import CELLS, training_times
from .report import Progress, Table
from .run import run

PEERS = ("torchdeq", "jax", "jaxopt", "optimistix")
SKIPPED = "skipped: needs a CUDA device, and torch.cuda.is_available() is False here"


def compare(quick: bool, folder: Path) -> None:
    """Measure everything, print it and write `gpu.json` and `gpu.png` into the folder."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would keep most of the card to itself
    run("gpu", _tables, PEERS, quick, folder)


def _tables(quick: bool, progress: Progress) -> Iterator[tuple[str, Table]]:
    if not torch.cuda.is_available():
        yield "steps", Table("On a GPU: µs a step, ms a training step", [], [SKIPPED])
        return
    device = torch.device("cuda", torch.cuda.current_device())
    where = described(device, PEERS)
    shapes, repeats = (SHAPES[:3], 3) if quick else (SHAPES, 15)
    yield "steps", step_times(device, progress, where=where, shapes=shapes, repeats=repeats)
    cells = {name: CELLS[name] for name in list(CELLS)[:2]} if quick else CELLS
    yield "training", training_times(device, progress, where=where, cells=cells, repeats=3 if quick else 11)
