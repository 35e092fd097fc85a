"""The command `implicit compare`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..contestants.contestant import Contestants
from ..contestants.own import chosen, known
from ..contestants.terms import TERMS
from ..errors import InputError
from ..failures import Failure
from ..names import found
from ..running.compare import compared
from ..tasks.make import fewer, make_task
from ..tasks.task import Source, Task
from ..training import OPTIMIZERS
from ..training.device import chosen_device, data_on_the_processor
from ..training.precision import check_precision
from ..training.team import Team, joined


def compare(options: dict[str, Any], typed: Sequence[str]) -> list[Failure]:
    """Run the comparison that the command line describes and return its failures.

    Args:
        options: of the command line, merged with the recorded ones of a resumed run.
        typed: the arguments as they were given.
    """
    device = chosen_device(options["device"])
    check_precision(options["precision"], device)
    data = None if options["data"] is None else str(Path(options["data"]).resolve())
    with data_on_the_processor(), joined(device, options["strategy"]) as team:
        task = _task(options, team)
        contestants, names = chosen(options["models"], _known(options, task), task)
        epochs = options["epochs"] or task.epochs
        resumed = options.get("command_line")  # the command line that started the run
        command_line = resumed if options["resume"] is not None and resumed else _command_line(typed, team)
        recorded = {**options, "epochs": epochs, "data": data, "command_line": command_line}
        return compared(
            task,
            contestants,
            names,
            baseline=options["baseline"],
            terms=TERMS[options["match"]],
            epochs=epochs,
            seeds=options["seeds"],
            search=options["search"],
            out=options["out"],
            device=device,
            precision=options["precision"],
            team=team,
            resume=options["resume"],
            recorded={name: value for name, value in recorded.items() if name not in ("out", "resume", "download")},
            command=command_line,
        ).failures


def _known(options: dict[str, Any], task: Task) -> Contestants:
    """The toolkit's contestants; none where none is named and the task is not for them."""
    try:
        return known(options["task"], task)
    except InputError:
        names = [*options["models"].split(","), *filter(None, [options["baseline"]])]
        if all(":" in name for name in names):
            return {}
        raise


def _task(options: dict[str, Any], team: Team) -> Task:
    """The task with the changes of the command line; the leading process downloads data before the others read them."""
    source = Source(options["data"], options["download"])
    if source.download and team.size > 1:
        team.first(lambda: bool(make_task(options["task"], source)))
        source = replace(source, download=False)
    task = make_task(options["task"], source)
    changes = {name: options[name] for name in ("batch", "learning_rate") if options[name] is not None}
    if options["optimizer"] is not None:
        changes["optimizer"] = found(options["optimizer"], OPTIMIZERS, "optimizer")
        if not callable(changes["optimizer"]):
            raise InputError(f"optimizer {options['optimizer']} is not an optimiser class")
    return replace(task if options["rows"] is None else fewer(task, options["rows"]), **changes)


def _command_line(typed: Sequence[str], team: Team) -> str:
    """The command line as typed; under torchrun, the launcher's part is rebuilt from the numbers of processes."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return shlex.join(["implicit", *typed])
    nodes = ["--nnodes", str(team.nodes)] if team.nodes > 1 else []
    launcher = ["torchrun", *nodes, "--nproc-per-node", str(team.size // team.nodes), "-m", "experiments"]
    return shlex.join([*launcher, *typed])
