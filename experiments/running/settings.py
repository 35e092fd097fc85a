"""The settings that a run was started with: kept for resuming it, and not to be contradicted then."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line
from .folder import PYTHON, UNFINISHED, resumable_folder

WHERE = ("device", "devices", "nodes", "data")
"""Settings that may change when a run is resumed."""


def settled(options: dict[str, Any], typed: set[str], recorded: dict[str, Any]) -> dict[str, Any]:
    """The settings of a resumed run: its own, except for where it runs; `InputError` if the options contradict them.

    Args:
        options: of the command line, with their defaults.
        typed: the names of the options that were given.
        recorded: the settings that the run was started with.
    """
    if "out" in typed:
        raise InputError("--resume already names the folder of the run: leave out --out")
    command = recorded.get("command", "compare")
    if command == PYTHON:
        raise InputError("--resume: the run was started from Python: call compare(…, resume=…) there")
    if command != options["command"]:
        raise InputError(f"--resume: this is a run of implicit {command}, not of implicit {options['command']}")
    if command == "compare" and not isinstance(recorded.get("task"), str):
        raise InputError("--resume: the run's settings name no task: remove its folder and start again")
    for name in typed & set(recorded) - set(WHERE):
        if options[name] != recorded[name]:
            option = "the task" if name == "task" else f"--{name.replace('_', '-')}"
            raise InputError(f"--resume: the run was started with {option} {recorded[name]}: leave out {options[name]}")
    return {**options, **{name: value for name, value in recorded.items() if name not in typed}}


def check_alike(given: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Raise `InputError` if a program resumes a run that was started with other settings."""
    if recorded.get("command") != PYTHON:
        command = recorded.get("command", "compare")
        raise InputError(f"resume: the run was started by implicit {command}: use implicit {command} --resume")
    for name, value in given.items():
        if name not in WHERE and recorded.get(name) != value:
            raise InputError(f"resume: the run was started with {name}={recorded.get(name)!r}, not {value!r}")


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Keep the settings that the run was started with."""
    (folder / UNFINISHED).mkdir(exist_ok=True)
    path = folder / UNFINISHED / "settings.new"
    path.write_text(json.dumps(settings, indent=1) + "\n")
    os.replace(path, path.with_suffix(".json"))  # replaced whole, or left as it was


def read_settings(run: Path) -> dict[str, Any]:
    """The settings of a run that can be resumed, given its final name or its folder."""
    path = resumable_folder(run) / UNFINISHED / "settings.json"
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"--resume {run}: {path} cannot be read ({first_line(error)}): remove {path.parents[1]} and start again"
        ) from error
    if not isinstance(settings, dict):
        raise InputError(f"--resume {run}: {path} holds no settings: remove {path.parents[1]} and start again")
    return settings
