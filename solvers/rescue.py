"""What becomes of rows on which a solver got stuck: another one goes on, and plain steps tell whether f runs away.

Anderson's mixing, `Monotone` and `NewtonKrylov` seek small residuals, and may be caught where the residual is least
without a fixed point. Broyden's method is not, so it takes over for what is left of the steps. Where no solver gets on,
plain steps do what f does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .agreement import agrees, holding
from .books import Books
from .broyden import Broyden
from .criterion import FLOOR
from .iteration import Keep, Outcome, iterate
from .ledger import PATIENCE
from .norms import row_norms
from .picard import Picard
from .problem import Problem, Settings
from .rows import DRIFT, Bools, Floats, Integers
from .solution import Status

PROGRESS = 0.75
"""Fall of the best residual over `PATIENCE` steps that counts as none: at this rate a digit takes 240 steps."""
HALF = 0.5
"""Fall of the residual that a row must have shown to be handed on; what runs away at once shows none."""
ENOUGH = 50
"""Steps within which Broyden's method gets there or not at all; a row that has fewer left is not handed on."""
STRETCHES = 4
"""Of `PATIENCE` + 1 plain steps each, after which what has not gone far away may stay."""
SOME = 0.1
"""Fall over all steps, when they are more than `PATIENCE`, above which there has been no progress to speak of."""


def iterate_and_rescue(
    problem: Problem, z: Tensor, settings: Settings, image: Tensor | None = None, keep: Keep = Keep()
) -> Outcome:
    """`iterate`; then rows that got stuck are handed on, and called DIVERGED where plain steps drive them away.

    Steps of the second solver count as the row's own; plain steps are booked as evaluations.
    """
    outcome = iterate(problem, z, settings, image, keep)
    if not outcome.books.status.any():
        return outcome
    if settings.solver.strays:
        outcome = _rescued(problem, outcome, settings)
    if not outcome.dropped:  # else the whole batch is evaluated anyway
        _withdraw(problem, outcome, settings)
    return outcome


def _rescued(problem: Problem, outcome: Outcome, settings: Settings) -> Outcome:
    handed_on = np.zeros(len(outcome.value), dtype=bool)
    if not isinstance(settings.solver, Broyden):
        outcome, handed_on = _handed_on(problem, outcome, settings)
    books = outcome.books
    return _follow(problem, outcome, settings, _failed(books, problem.rounding) & (handed_on | _idle(books)))


def _withdraw(problem: Problem, outcome: Outcome, settings: Settings) -> None:
    """Where f couples the rows, those that failed may have moved on after others had converged, which then do not hold.

    Costs one evaluation, where some rows failed and others did not.
    """
    books = outcome.books
    converged = books.status == Status.CONVERGED
    if converged.any():
        image = problem(outcome.value)
        lapsed = converged & ~holding(outcome, image, problem.rounding, settings)
        books.status[lapsed] = Status.MAX_STEPS
        books.best[lapsed] = row_norms(image - outcome.value)[lapsed]
        books.scale[lapsed] = row_norms(image)[lapsed]


def _handed_on(problem: Problem, outcome: Outcome, settings: Settings) -> tuple[Outcome, Bools]:
    """The outcome after Broyden's method has gone on from the best iterates of the rows that gave up early; these."""
    books = outcome.books
    promising = (books.best < HALF * books.residuals[0]) & (books.steps + ENOUGH <= settings.max_steps)
    rows = _failed(books, problem.rounding) & promising
    if not rows.any():
        return outcome, rows
    more = iterate(problem, outcome.value, _eager(settings, Broyden(), ENOUGH))
    books.evaluations[rows] += more.books.evaluations[rows]
    # what f = z + b meets once ‖z‖ has grown is no convergence, judged from where the row began
    fallen = more.books.best + 2 * problem.rounding * more.books.scale < books.residuals[0]
    rows &= fallen | (more.books.status != Status.CONVERGED)
    after = _gone_on(outcome, more, rows)
    if agrees(after, problem(after.value), problem.rounding, settings):
        return after, rows
    return outcome, np.zeros_like(rows)  # f couples the rows, and those that had converged no longer do


def _gone_on(outcome: Outcome, more: Outcome, rows: Bools) -> Outcome:
    """The outcome with what became of the rows when they went on, whose evaluations are booked already."""
    books, chosen = outcome.books, torch.from_numpy(rows).to(outcome.value.device)[:, None]
    steps = books.steps + np.where(rows, more.books.steps, 0)
    return replace(
        outcome,
        value=torch.where(chosen, more.value, outcome.value),
        dropped=outcome.dropped or more.dropped,
        books=Books(
            best=np.where(rows, more.books.best, books.best),
            scale=np.where(rows, more.books.scale, books.scale),
            status=np.where(rows, more.books.status, books.status),
            steps=steps,
            evaluations=books.evaluations,
            residuals=_joined(books.residuals, more.books.residuals, books.steps, steps, rows),
            trace=_joined(books.trace, more.books.trace, books.steps, steps, rows),
        ),
    )


def _follow(problem: Problem, outcome: Outcome, settings: Settings, rows: Bools) -> Outcome:
    """Call those of the rows DIVERGED that plain steps from their best iterates drive out of range or far away.

    Those that plain steps solve at once, within what is left of the steps, are solved: it was the solver that was
    caught. If they take longer the row has STALLED.
    """
    books, z, plain = outcome.books, outcome.value, _eager(settings, Picard(), PATIENCE + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = DRIFT * np.maximum(books.residuals[0], books.residuals[0] / books.trace[0])
    for stretch in range(STRETCHES):
        if not rows.any():
            break
        followed = iterate(problem, z, plain, keep=Keep(iterates=(PATIENCE,)))
        (z,) = followed.iterates
        books.evaluations[rows] += followed.books.evaluations[rows]
        away = (followed.books.status == Status.NON_FINITE) | ~(row_norms(z) <= reach)
        books.status[rows & away] = Status.DIVERGED
        there = followed.books.status == Status.CONVERGED
        books.status[rows & there] = Status.STALLED
        solved = rows & there & (books.steps + followed.books.steps <= settings.max_steps)
        solved &= followed.books.best + 2 * problem.rounding * followed.books.scale < books.residuals[0]
        rows = rows & ~away & ~there
        if stretch == 0 and solved.any():
            after = _gone_on(outcome, followed, solved)
            if agrees(after, problem(after.value), problem.rounding, settings):
                outcome, books = after, after.books
    return outcome


def _joined(first: Floats, second: Floats, before: Integers, steps: Integers, rows: Bools) -> Floats:
    """(steps, batch): for each of the rows the second lines after the first ones."""
    lines = np.full((steps.max(), len(rows)), np.nan)
    lines[: len(first)] = first
    for row in np.flatnonzero(rows):
        lines[before[row] : steps[row], row] = second[: steps[row] - before[row], row]
    return lines


def _eager(settings: Settings, solver: Broyden | Picard, max_steps: int) -> Settings:
    return replace(settings, solver=solver, max_steps=max_steps, check_every=1, compile=False)


def _failed(books: Books, rounding: float) -> Bools:
    """Rows that did not converge, although f is finite there and the residual not at the dtype's floor."""
    with np.errstate(invalid="ignore"):
        resolved = books.relative <= FLOOR * rounding
    ended = (books.status == Status.CONVERGED) | (books.status == Status.NON_FINITE)
    return ~ended & ~resolved


def _idle(books: Books) -> Bools:
    """Rows without progress over the last steps."""
    before = np.arange(len(books.residuals))[:, None] < books.steps - PATIENCE
    earlier = np.where(before, books.residuals, np.inf).min(axis=0, initial=np.inf)
    with np.errstate(invalid="ignore"):
        idle: Bools = books.best > np.minimum(PROGRESS * earlier, SOME * books.residuals[0])
    return idle & (books.steps > PATIENCE)
