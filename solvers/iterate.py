"""The one loop: it drives every solver until no row runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from .coupled import JointProblem, solved_jointly
from .dropping import warn_of_dropping
from .kept import Keep
from .loops.recording import refuse_solve
from .pipeline import Pipeline
from .problem import DroppedRowsError, Problem
from .progress import Progress
from .run import DROP_SHARE, Run
from .settings import Settings
from .solution import Outcome
from .state import without_autocast

FEW_STEPS = 10
"""Steps since rows were dropped, below which the final evaluation of all rows together is skipped."""


def iterate(
    problem: Problem,
    z: Tensor,
    settings: Settings,
    start: tuple[Tensor, Tensor] | None = None,
    keep: Keep = Keep(),
    checked: bool = False,
) -> Outcome:
    """Solve on flat (rows, dim) matrices.

    Args:
        problem, z, settings: what to solve, from where, and how.
        start: `f(z)` and `f(z) − z`, if known.
        keep: what to keep beyond the solution.
        checked: whether the caller evaluates the solution again, and checks that all rows hold.
    """
    # autocast is for f only, whose problem turns it on again; the solver's own products keep their precision
    with without_autocast(problem.layout.device):
        try:
            outcome = _run(problem, z, settings, start, keep, checked)
        except DroppedRowsError as error:
            if problem.dropped:
                raise
            warn_of_dropping(problem, f"f failed without them: {error}")
        else:
            if not outcome.dropped or checked or _holds_together(problem, outcome, settings):
                return outcome
            warn_of_dropping(problem, "at the end, f returned other values for the whole batch")
        problem.independent = False
        return _run(problem, z, replace(settings, compact=False), start, keep)


def _holds_together(problem: Problem, outcome: Outcome, settings: Settings) -> bool:
    """Whether all rows, evaluated together, have the residuals that were found after some were dropped.

    This is assumed if a row has used up its steps, and if the slowest took few steps since rows were dropped, when f
    was found to keep rows apart: an evaluation would cost more than it is worth.
    """
    steps = outcome.rows.steps
    if (steps >= outcome.rows.limit).any() or steps.max() - np.quantile(steps, DROP_SHARE) < FEW_STEPS:
        return True
    value = outcome.value.to(problem.layout.working_dtype)
    image, residual = problem.evaluate(value, value)
    return bool(outcome.rule.holds(outcome.rows, *settings.measure.on_host(residual, image)).all())


def _run(
    problem: Problem, z: Tensor, settings: Settings, start: Any = None, keep: Keep = Keep(), checked: bool = False
) -> Outcome:
    z = z.to(problem.layout.working_dtype)
    if not len(z):
        z = z.detach()
        nobody = Progress.begin(problem, settings, z)
        return Outcome(z, *nobody.close(), nobody.rule, False, [], [z for _ in keep.iterates])
    refuse_solve()
    with settings.loop.open(problem, settings.most) as loop:
        run = Run(problem, z if start else z.clone(), settings, Pipeline(loop, not keep.histories), start, keep)
        while True:
            run.look()
            if run.misled:
                problem.coupled = False
                run = Run(problem, z if start else z.clone(), settings, Pipeline(loop, False), start, keep)
                continue
            if problem.coupled and not isinstance(problem, JointProblem) and run.repeatable:
                return solved_jointly(problem, z, run, _run)
            if run.finished(checked):
                return run.outcome(checked)
            run.pass_on()
            run.drop()
            run.go_on()
