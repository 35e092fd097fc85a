"""The progress of a solve: the norms of every step, and what the rule concludes from them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .judge import Verdict, judge
from .norms import RANGE
from .ordinary import Steps, falling, ordinary, passed
from .patience import Marks, Patience, marked
from .problem import Problem
from .rows import Bools, Floats, Integers, Rows, Rule
from .rules.broyden import Broyden
from .settings import Settings
from .trace import Trace


class Look(NamedTuple):
    """What the rule concludes from some steps."""

    keep: Integers  # for each row, the index of the last step whose iterate is to be kept; −1: none
    restart: Bools | None  # rows whose history is to be forgotten
    coupled: bool  # rows that were held have changed
    redirected: bool = False  # some row should have continued differently


class Progress:
    """What is known about the current rows of a solve.

    While no running row meets its tolerance, diverges, or uses up its patience or its steps, the rule has nothing to
    decide. Such steps are only collected.
    """

    @classmethod
    def begin(cls, problem: Problem, settings: Settings, z: Tensor) -> Progress:
        """Before the first step, from the (rows, dim) iterate z."""
        measure, solver, steps = settings.measure, settings.solver, settings.max_steps
        turns: tuple[int, ...] = ()
        if solver.may_be_caught:
            turns = (() if isinstance(solver, Broyden) else (1,)) + (() if problem.relative_to_start else (2,))
        rule = Rule(
            measure.rtol,
            measure.atol,
            problem.rounding,
            int(settings.min_steps),
            solver.may_be_caught,
            solver.backtracks,
            turns,
            inf if solver.exact_after is None else solver.exact_after,
            problem.relative_to_start,
        )
        if isinstance(steps, Tensor) and steps.shape != z.shape[:1]:
            raise ValueError(
                f"max_steps has shape {tuple(steps.shape)} for a batch of {len(z)}: pass one number for each row"
            )
        patience = solver.patience(z.shape[1])
        if isinstance(steps, Tensor):
            return cls(rule, Rows.fresh(steps.cpu().numpy().astype(np.int64), patience))
        return cls(rule, Rows.alike(len(z), int(steps), patience))

    def __init__(self, rule: Rule, rows: Rows) -> None:
        self.rule, self._rows = rule, rows
        self._pending: list[Floats] = []  # norms of the collected steps
        self._collected = 0  # their number
        self._kept: Integers | int = -1  # for each row, the index of the last of them whose iterate is to be kept
        # steps not in the marks yet: the rows before them, the first step's number, norms, and when rows converge
        self._unmarked: list[tuple[Rows, int, Floats, Integers | None]] = []
        self._least: Floats | list[float] = rows.best  # residuals of the running rows
        self._limit = int(rows.limit.max(initial=0))
        self._step = 0  # the last step that `_rows` includes
        self.quiet = False
        """Whether the rule had nothing to decide in the last steps, so that no row has stopped."""
        self._all_run = True
        self._patience = Patience(rule, rows)
        self._trace = Trace()

    @property
    def step(self) -> int:
        """The number of the last step."""
        return self._step + self._collected

    @property
    def limit(self) -> int:
        """The last step that any row may take."""
        return self._limit

    @property
    def rows(self) -> Rows:
        """What is known after the last step, except the marks."""
        if self._pending:
            self._pass()
        return self._rows

    @property
    def marked_rows(self) -> Rows:
        """All that is known after the last step."""
        rows = self.rows
        if self._unmarked:
            marks = Marks(rows.mark, rows.mark_at, rows.peaks)
            for before, step, norms, until in self._unmarked:
                marks = marked(self.rule, before, marks, step, norms, until)
            self._unmarked = []
            self._rows = rows._replace(**marks._asdict())
        return self._rows

    @property
    def running(self) -> Bools:
        """The rows that have not stopped."""
        return self._rows.running

    def missing(self, norms: Floats) -> float:
        """Estimate from the last norms how many more steps the row furthest from its tolerance needs."""
        return self.rule.missing(self._rows, norms)

    def falls(self, norms: Tensor, dtype: torch.dtype) -> bool:
        """Whether every row continues with a lower residual in the next step, of (2, rows) norms; if so, collect it.

        Most steps are like this, and this is the cheapest sufficient check. It is False where norms have left the range
        of `dtype`, the state's, so that `see` processes them in full.
        """
        if not self._all_run or self._patience.is_over(self.step + 1) or self.rule.relative_to_start:
            return False
        found = falling(self.rule, self._least, norms, RANGE[dtype])
        if found is None:
            return False
        self._least, block = found
        self._pending.append(block)
        self._patience.add(block[:1])
        self._kept = self._collected
        self._collected += 1
        self.quiet = True
        return True

    def see(self, norms: Floats, loose: Bools | None = None) -> Look:
        """Process the next steps, of (2·steps, rows) norms; rows that have stopped are held, except the loose ones."""
        count, self.quiet, held = len(norms) // 2, True, None
        if not self._all_run:
            held = ~self._rows.running if loose is None else ~self._rows.running & ~loose
            if not self._hold(norms, held):
                verdict = self._judged(norms, held)
                return Look(verdict.keep, verdict.restart, verdict.coupled, verdict.redirected)
        done, keep, restart, redirected, astray = 0, None, None, False, None
        while done < count and (self._pending or self._rows.running.any()):
            steps = self._ordinary(norms[2 * done :]) if astray is None else None
            if steps is not None and steps.number:
                self._take(steps, norms[2 * done : 2 * (done + steps.number)])
                keep = steps.keep if keep is None else np.where(steps.keep < 0, keep, steps.keep + done)
                done += steps.number
                continue
            alone = astray is None and not self._rows.recovering.any()
            until = done + 1 if alone else count
            verdict = self._judged(norms[2 * done : 2 * until], np.zeros_like(self._rows.running), astray)
            keep = np.where(verdict.keep < 0, -1 if keep is None else keep, verdict.keep + done)
            restart = verdict.restart if restart is None else restart | verdict.restart
            redirected |= verdict.redirected
            astray, done = verdict.astray if verdict.astray.any() else None, until
        if done < count:  # no row runs any more
            self.quiet = False
            self._note(norms[2 * done :])
        keep = np.full(norms.shape[1], -1) if keep is None else keep
        keep = keep if held is None else np.where(held, count - 1, keep)
        return Look(keep, None if restart is None else restart & self._rows.running, False, redirected)

    def _ordinary(self, norms: Floats) -> Steps:
        """The leading ordinary steps among the next."""
        rows, least = self._rows, np.asarray(self._least)
        norms = norms[: 2 * self._patience.room(rows, self.step + 1, norms[::2], least)]
        if not len(norms):
            return Steps(0, np.full(norms.shape[1], -1), least)
        first = self._pending[0] if self._pending else norms
        start = (rows.first, rows.first_scale) if self._step else (first[0], first[1])
        steps = ordinary(self.rule, rows, start, least, self.step + 1, norms)
        return steps._replace(spent=self.step + steps.number == self._patience.limit)

    def _take(self, steps: Steps, norms: Floats) -> None:
        self._patience.add(norms[::2])
        self._least = steps.least
        before, until = self._collected, steps.until
        self._kept = np.where(steps.keep < 0, self._kept, steps.keep + before) if before else steps.keep
        self._pending.append(norms)
        self._collected += steps.number
        if until is not None or steps.spent:
            self.quiet = False
            self._pass(None if until is None else until + before, steps.spent)

    def _pass(self, until: Integers | None = None, spent: bool = False) -> None:
        norms = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        keep, self._pending, self._collected, self._kept = self._kept, [], 0, -1
        self._unmarked.append((self._rows, self._step + 1, norms, until))
        self._rows = passed(self._rows, self._step + 1, norms, keep, until, spent)
        self._note(norms)

    def _hold(self, norms: Floats, held: Bools) -> bool:
        """Whether the held rows still have the residuals that were found."""
        return bool((~held | self.rule.holds(self._rows, norms[::2], norms[1::2])).all())

    def _judged(self, norms: Floats, held: Bools, astray: Bools | None = None) -> Verdict:
        """Apply the rule to the next steps."""
        self.quiet = False
        verdict = judge(self.rule, self.marked_rows, self._step + 1, norms, held, astray)
        self._rows = verdict.rows
        self._patience.know(self._rows)
        self._note(norms)
        return verdict

    def _note(self, norms: Floats) -> None:
        self._trace.add(norms)
        self._step += len(norms) // 2
        self._least, self._all_run = self._rows.best, bool(self._rows.running.all())
        self._patience.look(self._rows)

    def spend(self, first: int, spent: Sequence[tuple[int, Integers]]) -> None:
        """Count evaluations within the steps after the `first`, as in `Stretch`; each row those until it stopped."""
        for place, evaluations in spent:
            rows = self._rows  # no row has stopped in the collected steps
            counted = rows.running | (rows.steps > first + place)
            self._rows = rows._replace(spent=rows.spent + np.where(counted, evaluations, 0))

    def drop(self) -> Integers:
        """Continue without the rows that have stopped; returns the positions of those that remain."""
        _ = self.marked_rows
        self._trace.cut(self._rows)
        stay = np.flatnonzero(self._rows.running)
        self._rows = self._rows.take(stay)
        self._least, self._all_run = self._rows.best, True
        self._patience.know(self._rows)
        return stay

    def close(self) -> tuple[Rows, Floats]:
        """All rows in the order of the batch, and (2·steps, batch) norms, arbitrary once a row has stopped."""
        return self._trace.close(self.rows)
