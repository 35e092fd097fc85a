"""Dropping rows is sound only where rows do not depend on each other: the check, and the way back."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
from torch import Tensor

from .divergence import diagnosed
from .iteration import Outcome
from .ledger import SLACK
from .norms import row_norms
from .problem import Problem, Settings
from .solution import Status

ROUNDINGS = 4
"""Rounding units of the image by which evaluations in batches of different sizes may differ."""


def verified(problem: Problem, z: Tensor, settings: Settings, image: Tensor | None = None) -> Outcome:
    """`diagnosed`, and the check at the price of an evaluation."""
    outcome = diagnosed(problem, z, settings, image)
    if outcome.dropped and not agrees(outcome, problem(outcome.value), problem.rounding, settings):
        outcome = resolve(problem, z, settings, outcome)
    return outcome


def agrees(outcome: Outcome, image: Tensor, rounding: float, settings: Settings) -> bool:
    """Whether the rows solved in a shrinking batch hold in the full one, where their value has this image."""
    books, scale = outcome.books, row_norms(image)
    booked = np.where(books.status == Status.CONVERGED, settings.rtol * scale + settings.atol, books.best)
    with np.errstate(invalid="ignore"):
        holds = row_norms(image - outcome.value) <= SLACK * booked + ROUNDINGS * rounding * scale
    return bool((holds | (books.status == Status.NON_FINITE)).all())


def resolve(problem: Problem, z: Tensor, settings: Settings, first: Outcome, *, remember: bool = False) -> Outcome:
    """The fallback when dropping rows changed the others: solve with every row in place, and say why."""
    warnings.warn(
        "solving without the rows that had stopped changed the remaining ones, so the whole batch was solved again: f "
        "couples the rows (batch statistics, shared attention) or is not deterministic (dropout). Pass compact=False, "
        "replace BatchNorm by GroupNorm or LayerNorm, or draw the dropout mask outside f",
        RuntimeWarning,
        stacklevel=3,
    )
    second = diagnosed(problem, z, replace(settings, compact=False), remember=remember)
    second.books.evaluations += first.books.evaluations
    return second
