"""Dropping rows is sound only where rows do not depend on each other: the check, and the way back."""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch import Tensor

from .agreement import agrees
from .iteration import Keep, Outcome
from .problem import Problem, Settings
from .rescue import iterate_and_rescue


def verified(problem: Problem, z: Tensor, settings: Settings, image: Tensor | None = None) -> Outcome:
    """`iterate_and_rescue`, and the check at the price of an evaluation."""
    outcome = iterate_and_rescue(problem, z, settings, image)
    if outcome.dropped and not agrees(outcome, problem(outcome.value), problem.rounding, settings):
        outcome = resolve(problem, z, settings, outcome)
    return outcome


def resolve(problem: Problem, z: Tensor, settings: Settings, first: Outcome, keep: Keep = Keep()) -> Outcome:
    """The fallback when dropping rows changed the others: solve with every row in place, and say why."""
    warnings.warn(
        "solving without the rows that had stopped changed the remaining ones, so the whole batch was solved again: f "
        "couples the rows (batch statistics, shared attention) or is not deterministic (dropout). Pass compact=False, "
        "replace BatchNorm by GroupNorm or LayerNorm, or draw the dropout mask outside f",
        RuntimeWarning,
        stacklevel=3,
    )
    second = iterate_and_rescue(problem, z, replace(settings, compact=False), keep=keep)
    second.books.evaluations += first.books.evaluations
    return second
