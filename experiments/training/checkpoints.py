"""Checkpoints of a training: written after each epoch, checked before training resumes from one."""

from __future__ import annotations

import csv
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from ..errors import InputError, first_line


class Keeper(Checkpoint):
    """Writes tables and the checkpoint after each epoch, when all else of the epoch is done.

    Args:
        checkpoint: its path; the leading process writes it, whole or not at all.
        tables: folder of `metrics.csv` and, with several processes, of a `rank-N.csv` for each one's own share.
    """

    def __init__(self, checkpoint: Path, tables: Path) -> None:
        self.checkpoint, self.tables = checkpoint, tables
        self._ending: Any = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world_size == 1:
            return
        own = self._own(trainer)
        if own.exists():
            with own.open(newline="") as file:
                pl_module.own[:] = list(csv.DictReader(file))[: trainer.current_epoch]
        if threading.current_thread() is threading.main_thread():
            # Lightning's handler of this signal waits for the other processes, which may have gone
            signal.signal(signal.SIGTERM, self._ending)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world_size > 1:
            _write(self._own(trainer), pl_module.own)
        if trainer.is_global_zero:
            _write(self.tables / "metrics.csv", pl_module.curves)
        trainer.save_checkpoint(self.checkpoint)

    def _own(self, trainer: Any) -> Path:
        return self.tables / f"rank-{trainer.global_rank}.csv"


def _write(path: Path, epochs: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"epoch": epoch, **row} for epoch, row in enumerate(epochs)]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)


def loaded(path: Path, remedy: str) -> Any:
    """What `torch.save` wrote, tensors and plain values only; `InputError` with the remedy if it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise anything
        raise InputError(f"{path} cannot be read as a checkpoint ({first_line(error)}): {remedy}") from error


def checked(path: Path, run: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Any]:
    """The checkpoint in that file; `InputError` where it is damaged, another run's, or another network's.

    Args:
        path: its file.
        run: identifies the training; the checkpoint must hold the same.
        weights: the state of the network, whose names and shapes it must have.
    """
    remedy = "remove it to train this network from the start"
    checkpoint = loaded(path, remedy)
    found = checkpoint.get("run") if isinstance(checkpoint, dict) else None
    if found != run:
        raise InputError(f"{path} is a checkpoint of {_words(found)}, not of {_words(run)}: {remedy}")
    shapes = {f"network.{name}": value.shape for name, value in weights.items()}
    if {name: value.shape for name, value in checkpoint["state_dict"].items()} != shapes:
        raise InputError(f"{path} is a checkpoint of a network with other weights: {remedy}")
    return dict(checkpoint)


def _words(run: dict[str, Any] | None) -> str:
    return "something else" if run is None else ", ".join(f"{key} {value}" for key, value in run.items())
