"""Whether `f` runs away where a solver got stuck: plain steps tell, which an accelerated solver never takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from .iteration import Outcome, iterate
from .ledger import FLOOR, PATIENCE, Books
from .picard import Picard
from .problem import Problem, Settings
from .rows import Bools
from .solution import Status

PROGRESS = 0.75
"""Fall of the best residual over `PATIENCE` steps that counts as none: at this rate a digit takes 240 steps."""
SOME = 0.1
"""Fall over all steps, when they are more than `PATIENCE`, above which there has been no progress to speak of."""


def diagnosed(
    problem: Problem, z: Tensor, settings: Settings, image: Tensor | None = None, *, remember: bool = False
) -> Outcome:
    """`iterate`, after which rows that got stuck and that plain steps drive away from there are called DIVERGED.

    Costs up to `PATIENCE` + 1 evaluations, which are booked, and only where rows got stuck.
    """
    outcome = iterate(problem, z, settings, image, remember=remember)
    books = outcome.books
    stuck = _stuck(books, problem.rounding)
    if settings.solver.strays and stuck.any():
        plain = replace(settings, solver=Picard(), max_steps=PATIENCE + 1, check_every=1, compile=False)
        followed = iterate(problem, outcome.value, plain).books
        books.evaluations[stuck] += followed.evaluations[stuck]
        away = (followed.status == Status.DIVERGED) | (followed.status == Status.NON_FINITE)
        books.status[stuck & away] = Status.DIVERGED
    return outcome


def _stuck(books: Books, rounding: float) -> Bools:
    """Rows that stopped, not at the dtype's floor, without progress over the last steps."""
    failed = (books.status == Status.STALLED) | (books.status == Status.MAX_STEPS)
    if not failed.any():
        return failed
    before = np.arange(len(books.residuals))[:, None] < books.steps - PATIENCE
    earlier = np.where(before, books.residuals, np.inf).min(axis=0, initial=np.inf)
    with np.errstate(invalid="ignore"):
        idle = books.best > np.minimum(PROGRESS * earlier, SOME * books.residuals[0])
        return failed & idle & (books.steps > PATIENCE) & (books.relative > FLOOR * rounding)
