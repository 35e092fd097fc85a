"""The gradients beside torchdeq's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from .backward import backward
from .loss_scale import loss_scale
from .proximal import proximal_gradients, proximal_seconds
from .report import Progress, Table
from .run import Measurement, run
from .second_derivatives import second_derivatives
from .splitting import splitting
from .training_step import training_step

PEERS = ("torchdeq", "scipy", "deepinv")
MEASUREMENTS: dict[str, Measurement] = {
    "second_derivatives": second_derivatives,
    "loss_scale": loss_scale,
    "proximal_gradients": proximal_gradients,
}


def compare(quick: bool, folder: Path) -> None:
    """Measure everything, print it and write `gradients.json` and `gradients.png` into the folder."""
    run("gradients", _tables, PEERS, quick, folder)


def _tables(quick: bool, progress: Progress) -> Iterator[tuple[str, Table]]:
    yield "training_step", training_step(quick, progress)
    yield "proximal_seconds", proximal_seconds(quick, progress)
    torch.set_num_threads(1)  # small problems run fastest on one thread
    yield "splitting", splitting(quick, progress)
    yield from backward(quick, progress)
    for name, measure in MEASUREMENTS.items():
        yield name, measure(quick, progress)
