"""Rows that turn out to depend on each other: the batch becomes one problem, whose rows converge together."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .caller import level_of_caller
from .loops.eager import Eager
from .norms import Measure, Norm, row_norms
from .problem import Problem
from .rows import SLACK, Floats
from .settings import Settings
from .solution import Outcome
from .state import Layout
from .status import Status
from .trace import until_stopped

if TYPE_CHECKING:
    from .run import Run


class JointProblem(Problem):
    """A problem of one row, which holds all rows of another problem."""

    def __init__(self, problem: Problem) -> None:
        layout = problem.layout
        one = torch.empty(1, layout.batch * sum(layout.sizes), dtype=layout.dtype, device=layout.device)
        super().__init__(problem.f, (), Layout(one))
        self.problem = problem
        self.layout.working_dtype = layout.working_dtype
        self.relative_to_start = problem.relative_to_start  # type: ignore[misc]
        self.subtracts = problem.subtracts  # type: ignore[misc]

    def __call__(self, flat: Tensor) -> Tensor:
        return self.problem(self._rows(flat)).reshape(1, -1)

    def residual(self, flat: Tensor) -> Tensor:
        return self.problem.residual(self._rows(flat)).reshape(1, -1)

    def _rows(self, flat: Tensor) -> Tensor:
        return flat.view(self.problem.layout.batch, -1)

    def _pair(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        image, residual = self.problem._pair(self._rows(z))
        return image.reshape(1, -1), None if residual is None else residual.reshape(1, -1)


@dataclass(frozen=True)
class WorstRow(Norm):
    """The norms of the row that is furthest above its tolerance."""

    norm: Norm
    count: int

    def measure(self, residual: Tensor, image: Tensor, rtol: float, atol: float, robust: bool) -> Tensor:
        residual, image = (x.unflatten(-1, (self.count, -1)).squeeze(-3) for x in (residual, image))
        norms = self.norm.measure(residual, image, rtol, atol, robust)
        excess = torch.where(norms[0] == 0, 0, norms[0] / (atol + rtol * norms[1]))
        worst = excess.argmax(dim=-1, keepdim=True)  # a NaN counts as the largest
        return norms.gather(-1, worst.expand(2, *worst.shape))


def solved_jointly(
    problem: Problem, z: Tensor, run: Run, loop: Callable[[Problem, Tensor, Settings], Outcome]
) -> Outcome:
    """Solve the batch as one problem in the remaining steps, from the current point if its residuals are smaller.

    Tolerances relative to the start are the same for all rows, relative to the largest residual there: that of a single
    row says nothing, and may be 0.

    Args:
        problem, z: the original ones.
        run: the row-by-row solve so far.
        loop: solves a problem.
    """
    if not (run.warned or problem.told):
        _warn()
        problem.told = True
    first = run.outcome(verified=False)  # each row is measured again at the end
    rows, done, rtol, atol = first.rows, run.progress.step, run.settings.rtol, run.measure.atol
    if problem.relative_to_start:
        largest = rows.first[np.isfinite(rows.first)].max(initial=0)
        rows = rows._replace(first=np.full(len(z), largest))
        rtol, atol = 0.0, float(first.rule.tolerance(largest))
    point, residual = run.stretch.points[-1].to(z.dtype), run.stretch.residual
    left = run.progress.limit - done
    nearer = row_norms(residual).max() < rows.first.max()  # not so where it is NaN
    start = point if nearer or left <= 0 else z
    joint, norms = start, until_stopped(first.norms, rows)
    if left > 0:
        joint_settings = replace(
            run.settings,
            min_steps=min(run.settings.min_steps, left),
            max_steps=left,
            compact=False,
            norm=WorstRow(run.settings.norm, len(z)),
            rtol=rtol,
            atol=atol,
            loop=Eager(),
        )
        found = loop(JointProblem(problem), start.reshape(1, -1), joint_settings)
        joint, norms = found.value.view_as(z), np.concatenate((_padded(norms, done), found.norms.repeat(len(z), 1)))
        done += int(found.rows.steps[0])
        rows = rows._replace(spent=rows.spent + found.rows.spent, status=found.rows.status.repeat(len(z)))
    image, residual = problem.evaluate(joint, joint)
    best, scale = run.measure.on_host(residual, image)
    met = best <= SLACK * first.rule.tolerance(first.rule.reference(rows, scale))
    failed = np.where(rows.converged, Status.MAX_STEPS, rows.status)
    rows = rows._replace(
        status=np.where(met, Status.CONVERGED, failed),
        steps=np.full(len(z), done),
        best=best,
        best_scale=scale,
    )
    return replace(first, value=joint, rows=rows, norms=norms, dropped=False, joint=True)


def _padded(norms: Floats, steps: int) -> Floats:
    """The norms, padded with NaN to this number of steps."""
    return np.concatenate((norms, np.full((2 * steps - len(norms), norms.shape[1]), np.nan)))


def withdrawn(outcome: Outcome, problem: Problem, measure: Measure, checked: bool) -> Outcome:
    """Withdraw convergence from rows that no longer hold beside the others.

    If f couples the rows, others may have moved after a row converged. Costs one evaluation, unless no row converged,
    or all did and the caller checks them.
    """
    rows = outcome.rows
    converged = rows.converged
    if not converged.any() or (checked and converged.all()):
        return outcome
    image, residual = problem.evaluate(outcome.value, outcome.value)
    norms = measure.on_host(residual, image)
    lapsed = converged & ~outcome.rule.holds(rows, *norms)
    return replace(
        outcome,
        rows=rows._replace(
            status=np.where(lapsed, Status.MAX_STEPS, rows.status),
            best=np.where(lapsed, norms[0], rows.best),
            best_scale=np.where(lapsed, norms[1], rows.best_scale),
        ),
    )


def _warn() -> None:
    """Warn that rows depend on each other, and say what is done about it and what to change."""
    warnings.warn(
        "the rows depend on each other: rows that had stopped changed while others moved. The batch is solved as one "
        "problem instead, and its rows converge together. If it is one problem (a graph, whose nodes are not rows), "
        "pass it as one row: z0[None] and x[None]. Otherwise, replace batch statistics by GroupNorm or LayerNorm, and "
        "draw random numbers outside f",
        RuntimeWarning,
        stacklevel=level_of_caller(),
    )
