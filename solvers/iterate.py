"""The one loop: it drives every solver until no row runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from .autocast import without_autocast
from .coupled import JointProblem, WorstRow, warn_of_coupling
from .dropping import warn_of_dropping
from .loops.eager import Eager
from .norms import row_norms
from .outcome import Keep, Outcome
from .problem import DroppedRowsError, Problem
from .progress import Progress
from .rows import SLACK, Floats
from .run import Run, fresh_rows, rule_of
from .settings import Settings
from .solution import Status


def iterate(
    problem: Problem,
    z: Tensor,
    settings: Settings,
    start: tuple[Tensor, Tensor] | None = None,
    keep: Keep = Keep(),
) -> Outcome:
    """Solve, on flat (rows, dim) matrices; `start` is `f(z)` and `f(z) − z` where they are known."""
    # autocast is for f, which turns it on again; the solver's own products keep their digits
    with without_autocast(problem.layout.device):
        try:
            return _run(problem, z, settings, start, keep)
        except DroppedRowsError as error:
            if problem.dropped:
                raise
            warn_of_dropping(f"f failed without them: {error}")
            return _run(problem, z, replace(settings, compact=False), start, keep)


def _run(problem: Problem, z: Tensor, settings: Settings, start: Any, keep: Keep) -> Outcome:
    z = z.to(problem.layout.working_dtype)
    if not len(z):
        nobody = Progress(rule_of(problem, settings), fresh_rows(z, settings)).close()
        return Outcome(z, *nobody, rule_of(problem, settings), False, [], [z for _ in keep.iterates])
    run = Run(problem, z if start else z.clone(), settings, start, keep)
    while True:
        run.look()
        if problem.coupled and not isinstance(problem, JointProblem) and run.repeatable:
            return _solved_jointly(problem, z, run)
        if run.finished:
            return run.outcome()
        run.pass_on()
        run.drop()
        run.go_on()


def _solved_jointly(problem: Problem, z: Tensor, run: Run) -> Outcome:
    """The batch as one problem, with the steps that are left, from where the rows are if that is nearer."""
    if not run.warned and problem.told:
        warn_of_coupling()
    first = run.outcome(verified=False)  # each row is measured anew at the end
    rows, done = first.rows, run.progress.step
    point, residual = run.stretch.points[-1].to(z.dtype), run.stretch.residual
    start = point if row_norms(residual).max() < rows.first.max() else z
    left = run.progress.limit - done
    joint, norms = start, first.norms
    if left > 0:
        joint_settings = replace(
            run.settings, max_steps=left, compact=False, norm=WorstRow(run.settings.norm, len(z)), loop=Eager()
        )
        found = _run(JointProblem(problem), start.reshape(1, -1), joint_settings, None, Keep())
        joint, norms = found.value.view_as(z), np.concatenate((_padded(norms, done), found.norms.repeat(len(z), 1)))
        done += int(found.rows.steps[0])
        rows = replace(rows, spent=rows.spent + found.rows.spent, status=found.rows.status.repeat(len(z)))
    image, residual = problem.evaluate(joint, joint)
    best, scale = run.measure.on_host(residual, image)
    met = best <= SLACK * first.rule.tolerance(first.rule.reference(rows, scale))
    failed = np.where(rows.status == Status.CONVERGED, Status.MAX_STEPS, rows.status)
    rows = replace(
        rows,
        status=np.where(met, Status.CONVERGED, failed),
        steps=np.full(len(z), done),
        best=best,
        best_scale=scale,
    )
    return replace(first, value=joint, rows=rows, norms=norms, dropped=False)


def _padded(norms: Floats, steps: int) -> Floats:
    """With as many lines as so many steps have."""
    return np.concatenate((norms, np.full((2 * steps - len(norms), norms.shape[1]), np.nan)))
