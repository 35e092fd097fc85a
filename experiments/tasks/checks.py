"""Checks of a task, made before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset

from .goals import Classification, ExactMatch, Goal, NextCharacter

if TYPE_CHECKING:
    from .task import Task


def checked(task: Task) -> None:
    """Raise `ValueError` for data, a goal or numbers that cannot be trained on."""
    if not isinstance(task.goal, Goal):
        raise ValueError(
            f"task {task.name}: goal={task.goal!r} is not a Goal: pass Classification(classes), Regression()"
        )
    if not 0 < task.learning_rate < float("inf"):
        raise ValueError(f"task {task.name}: learning_rate={task.learning_rate} is not a positive number")
    for number in ("epochs", "batch", "measured"):
        if getattr(task, number) < 1:
            raise ValueError(f"task {task.name}: {number}={getattr(task, number)} is not at least 1")
    parts = {"train": task.train, "test": task.test}
    if task.validation is not None:
        parts["validation"] = task.validation
    for part, data in parts.items():
        try:
            _check_part(data, task.goal, shares=part == "train")
        except ValueError as error:
            raise ValueError(f"task {task.name}: its {part} part {error}") from None


def _check_part(data: Any, goal: Goal, shares: bool) -> None:
    """Check one part of the data; `shares`: whether the targets of a classification may be shares of the classes."""
    indexed = hasattr(data, "__getitem__") and not isinstance(data, IterableDataset)
    if not hasattr(data, "__len__") or not indexed:
        raise ValueError(f"is a {type(data).__name__}, not a data set with a length and items, such as a TensorDataset")
    if len(data) == 0:
        raise ValueError("is empty")
    tensors = _in_memory(data)
    if tensors is None:  # its items are made on access
        first = data[0]
        if not isinstance(first, (tuple, list)) or len(first) != 2:
            held = f"{len(first)} parts" if isinstance(first, (tuple, list)) else f"a {type(first).__name__}"
            raise ValueError(f"has items of {held}, not pairs (input, target)")
        if isinstance(first[0], (dict, list, tuple, str)):
            raise ValueError(f"has inputs that are a {type(first[0]).__name__} each, not a tensor")
        return
    if len(tensors) != 2:
        raise ValueError(f"holds {len(tensors)} tensors, not two, inputs and targets")
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError("holds NaN or Inf")
    if isinstance(goal, Classification):
        _check_labels(tensors[1], goal.classes, shares)
    if isinstance(goal, ExactMatch):
        _check_answers(tensors[1], goal.classes)
    if isinstance(goal, NextCharacter):
        _check_characters(tensors[1], goal.characters)


def _in_memory(data: Any) -> list[Tensor] | None:
    """The tensors of a data set that holds them in memory; None for any other."""
    if isinstance(data, TensorDataset):
        return list(data.tensors)
    if isinstance(data, Subset):
        whole = _in_memory(data.dataset)
        return None if whole is None else [tensor[list(data.indices)] for tensor in whole]
    if isinstance(data, (list, tuple)):
        try:
            return list(map(torch.stack, zip(*(map(torch.as_tensor, pair) for pair in data), strict=True)))
        except (TypeError, ValueError, RuntimeError):
            return None  # pictures, say, which the task collates in its own way
    return None


def _check_labels(labels: Tensor, classes: int, shares: bool = False) -> None:
    if labels.ndim > 1 and labels.is_floating_point():
        if shares:
            return
        raise ValueError("has shares of the classes as labels, which no score accepts: pass labels, y.argmax(1)")
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(f"has labels of {labels.dtype} in shape {tuple(labels.shape)}, not torch.int64 in (rows,)")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"has labels from {low} to {high}, not from 0 to {classes - 1}, as classes={classes} requires")


def _check_answers(labels: Tensor, classes: int) -> None:
    if labels.dtype != torch.int64 or labels.ndim != 2:
        shape = tuple(labels.shape)
        raise ValueError(f"has labels of {labels.dtype} in shape {shape}, not torch.int64 in (rows, answers)")
    _check_labels(labels.flatten(), classes)


def _check_characters(numbers: Tensor, characters: int) -> None:
    if numbers.dtype != torch.int64 or numbers.ndim != 2:
        shape = tuple(numbers.shape)
        raise ValueError(f"has targets of {numbers.dtype} in shape {shape}, not torch.int64 in (rows, length)")
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= characters:
        asked = f"characters={characters} requires"
        raise ValueError(f"has characters numbered from {low} to {high}, not from 0 to {characters - 1}, as {asked}")
