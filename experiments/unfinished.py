"""What the finished networks of an unfinished run came to: they are not trained and measured again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from implicit.diagnostics import Finding
from solvers import Solution

from .checkpoints import loaded
from .diagnosis import Diagnosis
from .errors import InputError
from .folder import UNFINISHED
from .measure import Measurement
from .results import Run
from .training import Training


def keep(folder: Path, name: str, run: Run, seconds: float) -> None:
    """Write what a network came to, and the seconds that the comparison has taken until then."""
    path = _path(folder, name, run.seed)
    numbers = {
        "run": {"network": name, "seed": run.seed},
        "training": vars(run.training),
        "diagnosis": run.diagnosis and _plain(run.diagnosis),
        "measurement": {**vars(run.measurement), "solutions": [vars(each) for each in run.measurement.solutions]},
        "weights": run.network.state_dict(),
        "seconds": seconds,
    }
    unfinished = path.with_suffix(".new")
    torch.save(numbers, unfinished)
    os.replace(unfinished, path)  # a reader finds it whole or not at all


def kept(folder: Path, name: str, seed: int, network: nn.Module) -> tuple[Run, float] | None:
    """What `keep` wrote, its weights now in the network; None where it did not, `InputError` where it is damaged."""
    path = _path(folder, name, seed)
    if not path.exists():
        return None
    remedy = "remove it to measure this network again"
    numbers = loaded(path, remedy)
    try:
        if numbers["run"] != {"network": name, "seed": seed}:
            raise InputError(f"{path} is of {numbers['run']}, not of {name}, seed {seed}: {remedy}")
        network.load_state_dict(numbers["weights"])
        measured: dict[str, Any] = numbers["measurement"]
        solutions = [Solution(**each) for each in measured.pop("solutions")]
        measurement = Measurement(**measured, solutions=solutions)
        diagnosis = None if numbers["diagnosis"] is None else _diagnosis(numbers["diagnosis"])
        return Run(seed, Training(**numbers["training"]), measurement, network, diagnosis), numbers["seconds"]
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} is not what this network came to: {remedy}") from error


def _plain(diagnosis: Diagnosis) -> dict[str, Any]:
    return {**vars(diagnosis), "findings": [vars(finding) for finding in diagnosis.findings]}


def _diagnosis(plain: dict[str, Any]) -> Diagnosis:
    return Diagnosis(**{**plain, "findings": [Finding(**finding) for finding in plain["findings"]]})


def _path(folder: Path, name: str, seed: int) -> Path:
    return folder / UNFINISHED / f"{name}-seed-{seed}.pt"
