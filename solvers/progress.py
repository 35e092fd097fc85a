"""The progress of a solve: the norms of every step, and what the rule makes of them."""

from __future__ import annotations

from dataclasses import fields, replace
from math import inf

import numpy as np
from torch import Tensor

from .judge import Verdict, judge
from .problem import Problem
from .rows import Bools, Floats, Integers, Rows, Rule
from .rules.broyden import Broyden
from .settings import Settings

FEW = 128
"""Norms up to which Python compares one by one faster than NumPy calls its operations."""

Line = Floats | list[float]


class Progress:
    """What is known of the current rows of a solve.

    While every running row has a lower residual at each step, and none has met its tolerance or used up its patience or
    its steps, nothing changes but the residuals: such steps are collected, and the rule is not asked.
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
        self._pending: list[Line] = []  # norms of the collected steps
        self._limit = int(rows.limit.max(initial=0))
        self._step = 0  # the last that `_rows` knows
        self._deadline = self._next_deadline()
        self._lines: list[Floats] = []  # norms of the steps that `_rows` knows, since rows were last dropped
        self._dropped: list[tuple[Rows, Floats]] = []  # the rows, and the norms until then, each time some were

    @property
    def step(self) -> int:
        """The last."""
        return self._step + len(self._pending) // 2

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
            norms = np.array(self._pending, dtype=np.float64)
            self._rows = passed(self.rule, self._rows, self._step + 1, norms)
            self._pending = []
            self._note(norms, self._rows.running)
        return self._rows

    def uneventful(self, norms: Tensor) -> bool:
        """Whether the next steps, (2·steps, rows) norms, need no rule; they are then collected."""
        if self.step + len(norms) // 2 >= self._deadline:
            return False
        before = self._pending[-2] if self._pending else self._rows.best
        few = norms.numel() <= FEW
        lines: list[Line] = [*(norms.tolist() if few else norms.double().numpy())]
        fits = self._each_fits(lines, before) if few else self._fit(lines, before)
        if fits:
            self._pending += lines
        return fits

    def _each_fits(self, lines: list[Line], before: Line) -> bool:
        rtol, atol, falling, rows = self.rule.rtol, self.rule.atol, self.rule.falling, self._rows
        running = rows.running.tolist()
        if not all(running) and not self._held_hold(lines):
            return False
        references = rows.first.tolist() if self.rule.relative_to_start else None
        if references and not all(scale < inf for scales in lines[1::2] for scale in scales):
            return False
        for residuals, scales in zip(lines[::2], lines[1::2]):
            for runs, residual, scale, least in zip(running, residuals, references or scales, before):
                if runs and not rtol * scale + atol < residual < falling * least:
                    return False
            before = residuals
        return True

    def _fit(self, lines: list[Line], before: Line) -> bool:
        rows, least = self._rows, np.asarray(before)
        if not rows.running.all() and not self._held_hold(lines):
            return False
        for residual, scale in zip(map(np.asarray, lines[::2]), map(np.asarray, lines[1::2])):
            tolerance = self.rule.tolerance(self.rule.reference(rows, scale))
            fits = (tolerance < residual) & (residual < self.rule.falling * least) & np.isfinite(scale)
            if not (fits | ~rows.running).all():
                return False
            least = residual
        return True

    def _held_hold(self, lines: list[Line]) -> bool:
        """Whether rows that are held are where they were."""
        rows = self._rows
        pairs = zip(map(np.asarray, lines[::2]), map(np.asarray, lines[1::2]))
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
        self._deadline = self._next_deadline()

    def _next_deadline(self) -> int:
        """The next step at which the rule must be asked whatever the norms; 0: at once, since rows are recovering."""
        rows = self._rows
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


def passed(rule: Rule, rows: Rows, step: int, norms: Floats) -> Rows:
    """What `judge` makes of steps that need no rule, the first of them `step`."""
    running = rows.running
    if step == 1:
        rows = replace(rows, first=norms[0], first_scale=norms[1])
    mark, mark_at = rows.mark, rows.mark_at
    # where every fall counts as progress, the last step was some
    for number, residual in list(enumerate(norms[::2]))[-1 if rule.progress == rule.falling else 0 :]:
        progressed = running & (residual < rule.progress * mark)
        mark, mark_at = np.where(progressed, residual, mark), np.where(progressed, step + number, mark_at)
    best, scale = norms[-2:]
    return replace(
        rows,
        best=np.where(running, best, rows.best),
        best_scale=np.where(running, scale, rows.best_scale),
        last_scale=np.where(running, scale, rows.last_scale),
        mark=mark,
        mark_at=mark_at,
        peaks=np.where(running[:, None], 0, rows.peaks),
    )
