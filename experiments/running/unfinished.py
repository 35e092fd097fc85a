"""The results of an unfinished run so far, which are neither trained nor measured again when it is resumed."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from implicit.diagnostics import Finding
from solvers import Solution

from ..errors import InputError
from ..measuring.diagnosis import Diagnosis
from ..measuring.measure import Measurement
from ..names import file_name
from ..reporting.comparison import Run
from ..training.checkpoints import loaded
from ..training.train import Training
from .folder import UNFINISHED

_REMEDY = "remove it to measure this network again"


def write(folder: Path, name: str, values: Any) -> None:
    """Keep tensors and plain values under a name."""
    path = _path(folder, name)
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".new")
    torch.save(values, unfinished)
    os.replace(unfinished, path)  # a reader finds it whole or not at all


def read(folder: Path, name: str) -> Any:
    """What `write` kept under that name; None if nothing, `InputError` if it is damaged."""
    path = _path(folder, name)
    return loaded(path, _REMEDY) if path.exists() else None


def keep(folder: Path, name: str, run: Run, *, diagnosed: bool) -> None:
    """Keep the results of a network."""
    solutions = [vars(each) for each in run.measurement.solutions]
    measured = {field.name: getattr(run.measurement, field.name) for field in fields(Measurement)}
    values = {
        "run": {"network": name, "seed": run.seed},
        "training": vars(run.training),
        "diagnosis": run.diagnosis and _plain(run.diagnosis),
        "diagnosed": diagnosed,
        "measurement": {**measured, "solutions": solutions},
        "weights": run.network.state_dict(),
    }
    write(folder, f"{name}-seed-{run.seed}", values)


def kept(folder: Path, name: str, seed: int, network: nn.Module) -> tuple[Run, bool] | None:
    """What `keep` stored, its weights loaded into the network; None if nothing, `InputError` if it is damaged."""
    values = read(folder, f"{name}-seed-{seed}")
    if values is None:
        return None
    path = _path(folder, f"{name}-seed-{seed}")
    try:
        if values["run"] != {"network": name, "seed": seed}:
            raise InputError(f"{path} is of {values['run']}, not of {name}, seed {seed}: {_REMEDY}")
        network.load_state_dict(values["weights"])
        measured: dict[str, Any] = values["measurement"]
        solutions = [Solution(**each) for each in measured.pop("solutions")]
        measurement = Measurement(**measured, solutions=solutions)
        diagnosis = None if values["diagnosis"] is None else _diagnosis(values["diagnosis"])
        run = Run(seed, Training(**values["training"]), measurement, network, diagnosis)
        return run, values["diagnosed"]
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} does not hold results of this network: {_REMEDY}") from error


def _plain(diagnosis: Diagnosis) -> dict[str, Any]:
    return {**vars(diagnosis), "findings": [vars(finding) for finding in diagnosis.findings]}


def _diagnosis(plain: dict[str, Any]) -> Diagnosis:
    return Diagnosis(**{**plain, "findings": [Finding(**finding) for finding in plain["findings"]]})


def _path(folder: Path, name: str) -> Path:
    return folder / UNFINISHED / f"{file_name(name)}.pt"
