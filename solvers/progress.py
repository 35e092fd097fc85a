"""The progress of a solve: the norms of every step, and what the rule makes of them."""

from __future__ import annotations

from dataclasses import fields, replace
from math import inf

import numpy as np
from torch import Tensor

from .judge import RUNAWAY, Verdict, judge, passed
from .problem import Problem
from .rows import Bools, Floats, Integers, Rows, Rule
from .rules.broyden import Broyden
from .settings import Settings

FEW = 64
"""Norms up to which Python compares one by one faster than NumPy calls its operations."""
TINY = np.finfo(np.float64).tiny


class Progress:
    """What is known of the current rows of a solve.

    While no running row meets its tolerance, runs away, or uses up its patience or its steps, the rule has nothing to
    decide: such steps are collected.
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
        limit = steps.cpu().numpy().astype(np.int64) if isinstance(steps, Tensor) else np.full(len(z), int(steps))
        return cls(rule, Rows.fresh(limit, solver.patience(z.shape[1])))

    def __init__(self, rule: Rule, rows: Rows) -> None:
        self.rule, self._rows = rule, rows
        self._pending: list[Floats] = []  # norms of the collected steps
        self._collected = 0  # their number
        self._least: Floats = rows.best  # residuals of the running rows until then
        self._limit = int(rows.limit.max(initial=0))
        self._step = 0  # the last that `_rows` knows
        self._all_run = True
        self._deadline = self._next_deadline()
        self._lines: list[Floats] = []  # norms of the steps that `_rows` knows, since rows were last dropped
        self._dropped: list[tuple[Rows, Floats]] = []  # the rows, and the norms until then, each time some were

    @property
    def step(self) -> int:
        """The last."""
        return self._step + self._collected

    @property
    def limit(self) -> int:
        """The last step that any row may take."""
        return self._limit

    @property
    def quiet(self) -> bool:
        """Whether the last steps needed no rule: no row has stopped."""
        return bool(self._pending)

    @property
    def rows(self) -> Rows:
        """What is known after the last step."""
        if self._pending:
            norms = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
            self._rows = passed(self.rule, self._rows, self._step + 1, norms)
            self._pending, self._collected = [], 0
            self._note(norms, self._rows.running)
        return self._rows

    def collect(self, block: Floats) -> tuple[int, Integers]:
        """Collect those of the next steps, (2·steps, rows) norms, that come before the rule has something to decide.

        Returns:
            their number, and for each row the last of them whose iterate is to be kept, −1 for none of them.
        """
        count, done, keep = len(block) // 2, 0, np.full(block.shape[1], -1)
        if not self._all_run and not self._held_hold(block):
            return 0, keep
        while done < count:
            room = self._deadline - 1 - self.step
            if room <= 0 and self._pending:
                _ = self.rows  # what they say of progress moves the deadline
                room = self._deadline - 1 - self.step
            part = block[2 * done : 2 * (done + max(room, 0))]
            few = part.size <= FEW and self._all_run
            number, lowest, self._least = (self._each_ordinary if few else self._ordinary)(part)
            if not number:
                break
            keep = np.where(lowest < 0, keep, lowest + done)
            self._pending.append(part[: 2 * number])
            self._collected += number
            done += number
            if 2 * number < len(part):
                break
        return done, keep if self._all_run else np.where(self._rows.running, keep, done - 1)

    def _each_ordinary(self, block: Floats) -> tuple[int, Integers, Floats]:
        """The number of steps until the rule has something to decide, at which each row is lowest, and how low."""
        rtol, atol, lines = max(self.rule.rtol, TINY), self.rule.atol, block.tolist()
        least = self._least.tolist()
        references = [*self._first(block)] if lines and self.rule.relative_to_start else None
        lowest, number = [-1] * len(least), 0
        for residuals, scales in zip(lines[::2], lines[1::2]):
            for residual, scale, reference, low in zip(residuals, scales, references or scales, least):
                if not (atol + rtol * reference < residual <= RUNAWAY * low and residual + scale < inf):
                    return number, np.array(lowest), np.array(least)
            for row, residual in enumerate(residuals):
                if residual < least[row]:
                    least[row], lowest[row] = residual, number
            number += 1
        return number, np.array(lowest), np.array(least)

    def _ordinary(self, block: Floats) -> tuple[int, Integers, Floats]:
        """Likewise."""
        residuals, running = block[::2], self._rows.running
        references = self._first(block) if len(block) and self.rule.relative_to_start else block[1::2]
        with np.errstate(invalid="ignore", over="ignore"):
            least = np.minimum.accumulate(np.concatenate((self._least[None], residuals)))
            ordinary = (self.rule.tolerance(references) < residuals) & (residuals <= RUNAWAY * least[:-1])
            ordinary &= residuals + block[1::2] < inf
        every = np.all(ordinary | ~running, axis=1)
        number = len(every) if every.all() else int(every.argmin())
        fallen = least[1 : number + 1] < least[:number]
        lowest = number - 1 - fallen[::-1].argmax(0) if number else np.zeros(len(running), dtype=np.int64)
        return number, np.where(running & fallen.any(0), lowest, -1), np.where(running, least[number], self._least)

    def _first(self, block: Floats) -> Floats:
        """The residuals at the first step, which may be that of the next ones."""
        if self._step:
            return self._rows.first
        first: Floats = (self._pending[0] if self._pending else block)[0]
        return first

    def _held_hold(self, block: Floats) -> bool:
        """Whether rows that are held are where they were."""
        rows = self._rows
        pairs = zip(block[::2], block[1::2])
        return all((rows.running | self.rule.holds(rows, *pair)).all() for pair in pairs)

    def judged(self, norms: Floats) -> Verdict:
        """What the rule makes of the next steps."""
        before, step = self.rows, self._step + 1
        verdict = judge(self.rule, before, step, norms)
        self._rows = verdict.rows
        if len(norms) > 2:  # of the rest of the stretch nothing is told where a row has stopped
            last = np.where(self._rows.running | ~before.running, np.inf, self._rows.steps)
            stopped = np.arange(step, step + len(norms) // 2)[:, None] > last
            norms = np.where(stopped.repeat(2, 0), np.nan, norms)
        self._note(norms, before.running | self._rows.running)
        return verdict

    def _note(self, norms: Floats, running: Bools) -> None:
        self._lines.append(norms if running.all() else np.where(running, norms, np.nan))
        self._step += len(norms) // 2
        self._least = self._rows.best
        self._deadline = self._next_deadline()

    def _next_deadline(self) -> int:
        """The next step at which the rule must be asked whatever the norms; 0: at once, since rows are recovering."""
        rows = self._rows
        self._all_run = bool(rows.running.all())
        if rows.recovering.any() or not rows.running.any():
            return 0
        return int(np.minimum(rows.limit, rows.mark_at + rows.patience)[rows.running].min())

    def spend(self, evaluations: Integers) -> None:
        """Book evaluations beyond one a step."""
        rows = self.rows
        self._rows = replace(rows, spent=rows.spent + np.where(rows.running, evaluations, 0))

    def drop(self) -> Integers:
        """Go on without the rows that have stopped; returns the positions of those that stay."""
        self._file()
        stay = np.flatnonzero(self._rows.running)
        self._rows = self._rows.take(stay)
        self._least = self._rows.best
        self._deadline = self._next_deadline()
        return stay

    def _file(self) -> None:
        rows = self.rows
        empty = np.empty((0, len(rows.index)))
        self._dropped.append((rows, np.concatenate(self._lines) if self._lines else empty))
        self._lines = []

    def close(self) -> tuple[Rows, Floats]:
        """All rows in the order of the batch, and (2·steps, batch) norms, NaN once a row has stopped."""
        self._file()
        (everyone, norms), *later = self._dropped
        if later:
            everyone = everyone.take(everyone.index)  # copies
            norms = np.concatenate((norms, np.full((2 * self._step - len(norms), len(everyone.index)), np.nan)))
            line = len(self._dropped[0][1])
            for rows, block in later:
                for field in fields(Rows):
                    getattr(everyone, field.name)[rows.index] = getattr(rows, field.name)
                norms[line : line + len(block), rows.index] = block
                line += len(block)
        return everyone, norms[: 2 * everyone.steps.max(initial=0)]
