"""How a comparison was made: its command, place, versions and machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import torch

from ..tasks import Source
from ..training.team import Team


def command(given: dict[str, Any], source: Source) -> str:
    """What to type to make it again."""
    options = [f"--{name} {given[name]}" for name in ("models", "match", "epochs", "seeds", "device")]
    usual = {"devices": 1, "nodes": 1, "precision": "32", "strategy": "ddp"}
    options += [f"--{name} {given[name]}" for name, value in usual.items() if given[name] != value]
    if source.data is not None:
        options.append("--data DIR" + " --download" * source.download)  # whose folder is not said
    return " ".join(["implicit compare", given["task"], *options])


def place(device: str, team: Team, precision: str) -> str:
    """On what it trains, in words."""
    together = f"{team.size} processes ({team.strategy}) on " if team.size > 1 else ""
    return together + device + (f", trained in {precision}" if precision != "32" else "")


def circumstances(device: str) -> dict[str, Any]:
    """Versions and machine, without names of persons or hosts."""
    packages = ("torch", "numpy", "lightning", "torchmetrics", "scikit-learn")
    return {
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "machine": {
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
