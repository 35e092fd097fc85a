"""How a comparison was made: place, versions and machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import torch

from ..training.team import Team


def place(device: str, team: Team, precision: str) -> str:
    """What the training runs on, in words."""
    together = f"{team.size} processes ({team.strategy}) on " if team.size > 1 else ""
    return together + device + (f", trained in {precision}" if precision != "32" else "")


def circumstances(device: str) -> dict[str, Any]:
    """Versions and machine, without names of persons or hosts."""
    packages = ("implicit-networks", "torch", "numpy", "lightning", "torchmetrics", "scikit-learn")
    return {
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "machine": {
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
