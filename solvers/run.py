"""A solve in progress."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .coupled import withdrawn
from .dropping import can_follow
from .kept import Keep, Kept
from .loops.eager import Hold, Stretch
from .loops.transfer import on_device
from .norms import overflowing
from .pipeline import Pipeline
from .problem import Problem
from .progress import Progress
from .rows import Bools, Floats, Integers
from .second_try import SecondTry
from .settings import Settings
from .solution import Outcome

DROP_SHARE = 1 / 8
"""Share of the current rows that must have stopped before they are dropped: dropping copies the solver's history."""
SMALL = 2**18
"""Entries of a state up to which rows are chosen from all points at once, which costs fewer calls but more passes."""


class Run:
    """A solve in progress: its current rows, and what is known about them."""

    def __init__(
        self, problem: Problem, z: Tensor, settings: Settings, pipeline: Pipeline, start: Any, keep: Keep
    ) -> None:
        self.pipeline = pipeline
        self.loop = pipeline.loop
        self.settings, self.measure = settings, settings.measure
        self.original_dtype, self.template = z.dtype, settings.solver
        problem.compact = bool(settings.compact)
        self.problem = problem
        self._bind()
        at_first = self._begin(z, start)
        if z.dtype == torch.float32 and overflowing(self.stretch.exact_norms(self.norms[:2], self.measure), z.dtype):
            # squares leave the range of single precision: from here on the solver works in double
            z, self.problem = z.double(), problem.widened()
            self._bind()
            known = self.stretch.image.double(), self.stretch.residual.double()
            self._begin(z, known if at_first else self.problem.evaluate(z, z))
        self.best = z  # the kept iterates of the current rows
        self.last: Floats | None = None  # norms of the last steps, if the rule has been applied to them
        self.value = z  # likewise of all rows; known once rows have been dropped
        self.held: Tensor | None = None  # rows that do not move
        self.back: Tensor | None = None  # those that are put back, and begin anew
        self.restart: Bools | None = None
        self.redirected = False
        self.steady = True  # no row has begun anew
        self.warned = False
        self.together = True  # the kept iterates of all rows come from one evaluation
        self.kept = Kept(keep, len(z))

    def _bind(self) -> None:
        tolerances = (0.0 if self.problem.relative_to_start else self.measure.rtol), self.measure.atol
        self.solver = self.template.bind(self.problem, *tolerances)

    def _begin(self, z: Tensor, pair: tuple[Tensor, Tensor] | None) -> bool:
        """Run the first stretch, from an iterate whose image and residual may be known.

        Returns whether those of the stretch are this iterate's, and not those of a later one.
        """
        self.pipeline.stop()
        stretch = self.loop.begin(self.problem, self.solver, self.measure, z, pair)
        self.progress = Progress.begin(self.problem, self.settings, z)  # while a GPU runs the stretch
        self.stretch = stretch.first(self.progress.limit)
        self.pipeline.foresight &= self.loop.steady
        if self.pipeline.foresight:
            hold = Hold(None, z, None)
            self.stretch = self.pipeline.begun(self.stretch, self._after(stretch, hold), hold, self.progress.limit)
            self.norms = self.pipeline.norms.wait()
        else:
            self.norms = self.stretch.norms.cpu()
        return len(stretch.points) == 1

    def _after(self, stretch: Stretch, hold: Hold) -> Callable[[int], Stretch]:
        """Runs a number of steps after this stretch."""
        return lambda steps: self.loop.run(self.problem, self.solver, self.measure, stretch, steps, hold)

    def look(self) -> None:
        """Process the last steps."""
        points, first = self.stretch.points, self.progress.step
        if (
            len(points) == 1
            and self.pipeline.loose is None
            and self.progress.falls(self.norms, self.stretch.residual.dtype)
        ):
            self.restart, self.together, self.best, self.last = None, True, self.loop.kept(points[0]), None
            self._keep(first)
            return
        before, self.last = self.progress.running, self.stretch.exact_norms(self.norms, self.measure)
        look = self.progress.see(self.last, self.pipeline.loose)
        self.pipeline.seen(before, self.progress.running)
        self.together = bool((look.keep == len(points) - 1).all())
        self.best = self.loop.kept(points[-1]) if self.together else self._chosen(look.keep)
        self.restart = look.restart if look.restart is not None and look.restart.any() else None
        self.redirected = look.redirected
        self.steady &= self.restart is None and not self.redirected
        if not self.progress.quiet:
            self.problem.coupled |= look.coupled and not self.problem.dropped
        self._keep(first)

    def _keep(self, first: int) -> None:
        """Count evaluations within the last steps, and keep what is requested beyond the solution.

        Args:
            first: number of steps before them.
        """
        points, kept = self.stretch.points, self.kept
        self.progress.spend(first, self.stretch.spent)
        kept.add(first, points, lambda point: self._all(self.loop.kept(point)))
        if kept.keep.histories:
            rows = self.progress.rows
            kept.remember(rows, ~rows.running, self.progress.step, points[-1], self.stretch.memory)

    @property
    def misled(self) -> bool:
        """Whether steps have been taken, or begun ahead, that differ from those the rule requires."""
        if self.progress.quiet or not self.pipeline.foresight:
            return False
        turned = self.restart is not None or bool(self.progress.rows.recovering.any())
        ahead, long = self.pipeline.ahead is not None, self.pipeline.long
        return self.problem.coupled or (turned and ahead) or (self.redirected and long)

    @cached_property
    def repeatable(self) -> bool:
        """Whether f returns the same when evaluated again; if not, changes do not show that rows are coupled."""
        one, other = (self.problem(self.stretch.points[-1]) for _ in range(2))
        return torch.equal(one.nan_to_num(), other.nan_to_num())

    def finished(self, checked: bool) -> bool:
        """Whether no row runs, and no final evaluation of all rows together is due, to see whether f couples them."""
        if self.progress.quiet or self.progress.rows.running.any():
            return False
        rows = self.progress.rows
        alone = self.problem.dropped or len(rows.status) == 1 or self.together
        converged = rows.converged
        alone |= checked and bool(converged.all())
        return alone or not converged.any() or self.progress.step >= rows.limit.max()

    def pass_on(self) -> None:
        """Let second solvers take over the rows on which the first is stuck."""
        if self.progress.quiet:
            return
        rows = self.progress.rows
        if not rows.turn.any():
            return
        if not isinstance(self.template, SecondTry):
            self.template = SecondTry(self.template)
            self._bind()
        assert isinstance(self.solver, SecondTry)
        memory = self.solver.after(
            self.stretch.memory, self.best, rows.turn, self.progress.step, set(rows.turn[rows.running].tolist())
        )
        self.stretch = self.stretch._replace(memory=memory)

    def drop(self) -> None:
        """Drop the rows that have stopped, if there are enough of them and f works without them."""
        if not self.problem.compact or self.progress.quiet:
            return
        running = self.progress.rows.running
        if not running.any() or (~running).mean() < DROP_SHARE:
            return
        positions = on_device(np.flatnonzero(running), self.best)
        fewer, stretch = self.problem.take(positions), self.stretch.take(positions)
        if not (self.problem.independent or can_follow(fewer, stretch, self.measure)):
            self.problem.compact, self.problem.told, self.warned = False, True, True
            return
        self.problem.independent = fewer.independent = True
        self.value = self._all(self.best)
        stay = self.progress.drop()
        self.restart = None if self.restart is None else self.restart[stay]
        self.problem, self.stretch, self.best = fewer, stretch, self.best.index_select(0, positions)
        self._bind()

    def go_on(self) -> None:
        """Run the next steps or, if no row runs, evaluate all rows together once more."""
        if not (self.progress.quiet or self.progress.running.any()):
            self.pipeline.stop()
            self.stretch = self.loop.evaluate(self.problem, self.measure, self.best, self.stretch)
            self.norms = self.stretch.norms.cpu()
            return
        if not self.progress.quiet:
            rows = self.progress.rows
            self.held = None if rows.running.all() else on_device(~rows.running, self.best)
            self.back = on_device(rows.recovering, self.best) if rows.recovering.any() else None
        restart = None if self.restart is None else on_device(self.restart, self.best)
        room = max(self.progress.limit - self.progress.step, 1)
        hold = Hold(self.held, self.best, restart, self.back)
        run = self._after(self.stretch, hold)
        if not self.pipeline.foresight:
            self.stretch = run(min(self.loop.check_every, room))
            self.norms = self.stretch.norms.cpu()  # the one synchronisation of a stretch
            return
        missing = 0 if self.last is None else self.progress.missing(self.last)
        self.stretch = self.pipeline.next(run, hold, room, missing)
        self.norms = self.pipeline.norms.wait()[: len(self.stretch.norms)]

    def _chosen(self, keep: Integers) -> Tensor:
        """For each row, the point to keep or else its previous best."""
        points, best = self.stretch.points, self.best
        if best.numel() <= SMALL:
            everywhere = torch.stack((best, *points)).flatten(0, 1)
            return everywhere.index_select(0, on_device((keep + 1) * len(keep) + np.arange(len(keep)), best))
        chosen = on_device(keep, best)
        for number in np.unique(keep[keep >= 0]).tolist():
            best = torch.where((chosen == number)[:, None], points[number], best)
        return best

    def _all(self, current: Tensor) -> Tensor:
        """The matrix of all rows, given that of the current ones."""
        if not self.problem.dropped:
            return current
        return self.value.index_copy(0, on_device(self.progress.rows.positions, self.value), current)

    def outcome(self, checked: bool = False, verified: bool = True) -> Outcome:
        """The outcome so far.

        Args:
            checked: as in `iterate`.
            verified: whether to check that converged rows still hold beside the others.
        """
        dropped, value = self.problem.dropped, self._all(self.best).to(self.original_dtype)
        rows, norms = self.progress.close()
        self.loop.took(len(norms) // 2, self.steady)
        outcome = Outcome(
            value,
            rows,
            norms,
            self.progress.rule,
            dropped,
            self.kept.histories,
            self.kept.iterates(value, self.original_dtype),
        )
        if not verified or dropped or self.together or len(value) == 1:
            return outcome
        return withdrawn(outcome, self.problem, self.measure, checked)
