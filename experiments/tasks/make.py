"""Tasks by their names on the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Subset

from ..errors import InputError
from ..names import arguments, found, where
from . import TASKS
from .task import Source, Task


def fewer(task: Task, rows: int) -> Task:
    """The task with `rows` rows of its training part, and at most `rows` of each other part, drawn once.

    `InputError` if its training part has fewer.
    """

    def drawn(data: Any) -> Subset[Any]:
        order = torch.randperm(len(data), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        return Subset(data, order[:rows].tolist())

    whole: int = len(task.train)  # type: ignore[arg-type]
    if rows > whole:
        raise InputError(f"--rows {rows}: the training part of {task.name} has only {whole}")
    validation = None if task.validation is None else drawn(task.validation)
    return replace(task, train=drawn(task.train), test=drawn(task.test), validation=validation)


def make_task(name: str, source: Source = Source()) -> Task:
    """The task of that name; `InputError` where there is none, or where it cannot be made.

    Args:
        name: a key of `TASKS`, or `MODULE:FUNCTION` of a function that returns a `Task`.
        source: where its data come from; passed to a function that takes an argument.
    """
    make = found(name, TASKS, "task")
    if isinstance(make, Task) or not callable(make):
        raise InputError(f"task {name} is a {type(make).__name__}: name a function that returns a Task")
    takes = bool(arguments(make))
    if not takes and (source.data is not None or source.download):
        raise InputError(f"task {name} brings its own data: it takes neither --data nor --download")
    try:
        task = make(source) if takes else make()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"task {name} cannot be made: {where(error)}") from error
    if not isinstance(task, Task):
        raise InputError(f"task {name}: its function returned a {type(task).__name__}, not an experiments.Task")
    return task
