"""Ordinary steps, at which rows continue or converge and nothing else happens: the rule for many of them at once.

Whether a row is stuck is checked late, and mostly never; the marks that decide it are computed only then.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .judge import RUNAWAY
from .rows import Bools, Floats, Integers, Rows, Rule, least_so_far
from .status import Status

FEW = 64
"""Number of norms up to which comparing them one by one in Python is faster than calling NumPy."""
TINY = float(np.finfo(np.float64).tiny)
_CONVERGED, _MAX_STEPS, _STALLED = map(int, (Status.CONVERGED, Status.MAX_STEPS, Status.STALLED))  # cheap for NumPy


class Steps(NamedTuple):
    """The ordinary steps before the first that is not."""

    number: int
    keep: Integers  # for each row, the index of the last step whose iterate is to be kept; −1: none
    least: Floats  # for each row its least residual
    until: Integers | None = None  # for each row, steps until it converges, above `number` if later; None: no row does
    spent: bool = False  # the rows that have not converged by then have used up their steps


def ordinary(rule: Rule, rows: Rows, start: tuple[Floats, Floats], least: Floats, step: int, norms: Floats) -> Steps:
    """The leading ordinary steps: each running row converges, or has finite norms and a residual close to its least.

    Close means within a factor RUNAWAY. No row may be recovering, or use up its patience, or its steps before the last.

    Args:
        rule, rows: what is known before.
        start: the norms at the first step.
        least: least residuals of the running rows so far.
        step: number of the first of these steps.
        norms: (2·steps, rows) norms of these steps.
    """
    running, count, until = rows.running, len(norms) // 2, None
    all_run = bool(np.logical_and.reduce(running))
    if 0 < norms.size <= FEW and all_run:
        few = _few(rule, start, least, norms)
        if few.number == count:
            return few
    if not count:
        return Steps(0, np.full(len(least), -1), least)
    residuals, scales = norms[::2], norms[1::2]
    with np.errstate(invalid="ignore", over="ignore"):
        met = residuals <= rule.tolerance(start[0] if rule.relative_to_start else scales)
        finite = None if np.maximum.reduce(norms, axis=None) < inf else residuals + scales < inf
        if finite is not None:
            met &= finite
        if not all_run:
            met &= running
        if np.logical_or.reduce(met, axis=None):
            met = _genuine(rule, start, step, residuals, scales, met)
            converges = np.logical_or.reduce(met)
            if np.logical_or.reduce(converges):
                until = np.where(converges, met.argmax(0) + 1, count + 1)
        lowest = least_so_far(least, residuals)
        fits = residuals <= RUNAWAY * lowest[:-1]
    if finite is not None:
        fits &= finite
    if not np.logical_and.reduce(fits, axis=None):
        if not all_run:
            fits |= ~running
        if until is not None:
            fits |= np.arange(count)[:, None] >= until - 1
        every = np.logical_and.reduce(fits, axis=1)
        if not np.logical_and.reduce(every):
            count = int(every.argmin())
            if not count:
                return Steps(0, np.full(len(least), -1), least)
            until = None if until is None or (until > count).all() else until
    lower = lowest[count]
    keep = np.where(lower < least, (residuals[:count] == lower).argmax(0), -1)
    if until is not None:
        keep = np.where(until <= count, until - 1, keep)
    if not all_run:
        keep, lower = np.where(running, keep, -1), np.where(running, lower, least)
    return Steps(count, keep, lower, until)


def falling(
    rule: Rule, least: Floats | list[float], norms: Tensor, limits: tuple[float, float]
) -> tuple[Floats | list[float], Floats] | None:
    """The residuals and norms of the next step, if all residuals are below their least and above tolerance; else None.

    None, too, if norms are out of range. All rows run; `norms` is (2, rows), on the host.
    """
    rtol, atol, factor, (small, large) = max(rule.rtol, TINY), rule.atol, rule.falling, limits
    if norms.numel() <= FEW:
        residuals, scales = norms.tolist()
        before = least if isinstance(least, list) else least.tolist()
        for residual, scale, low in zip(residuals, scales, before):
            if not (small < residual < factor * low and atol + rtol * scale < residual and small < scale < large):
                return None
        return residuals, np.array((residuals, scales))
    block = np.array(norms.numpy(), dtype=np.float64)
    lower = (block[0] < factor * np.asarray(least)) & (atol + rtol * block[1] < block[0])
    return (block[0], block) if lower.all() and small < block.min() and block.max() < large else None


def _few(rule: Rule, start: tuple[Floats, Floats], least: Floats, norms: Floats) -> Steps:
    """`ordinary` for few norms, until the first row converges."""
    rtol, atol, lines = max(rule.rtol, TINY), rule.atol, norms.tolist()
    low, references = least.tolist(), start[0].tolist() if rule.relative_to_start else None
    keep, count = [-1] * len(low), 0
    for residuals, scales in zip(lines[::2], lines[1::2]):
        for residual, scale, reference, lowest in zip(residuals, scales, references or scales, low):
            if not (atol + rtol * reference < residual <= RUNAWAY * lowest and residual + scale < inf):
                return Steps(count, np.array(keep), np.array(low))
        for row, residual in enumerate(residuals):
            if residual < low[row]:
                low[row], keep[row] = residual, count
        count += 1
    return Steps(count, np.array(keep), np.array(low))


def _genuine(
    rule: Rule, start: tuple[Floats, Floats], step: int, residuals: Floats, scales: Floats, met: Bools
) -> Bools:
    """Where meeting the tolerance is convergence: `Rule.genuine` and `min_steps`, for many steps at once."""
    steps = step + np.arange(len(residuals))[:, None]
    if not rule.relative_to_start:
        fallen = residuals + 2 * rule.rounding * scales < start[0]
        if np.logical_or.reduce(met > fallen, axis=None):
            sure = (steps == 1) | (steps > rule.exact_after)
            near = (residuals <= rule.tolerance(start[1])) & (scales <= 2 * start[1])
            met = met & (fallen | sure | near)
    return met & (steps >= rule.min_steps) if rule.min_steps > step else met


def passed(
    rows: Rows, step: int, norms: Floats, keep: Integers | int, until: Integers | None = None, spent: bool = False
) -> Rows:
    """The rows after ordinary steps, as `judge` would leave them, except for the marks, which `marked` computes.

    Args:
        rows, step, norms: as above.
        keep: for each row, or for all, the index of the last of these steps whose iterate is to be kept; −1: none.
        until: for each row, the number of these steps after which it converges; larger if it does not.
        spent: whether the other rows have used up their steps.
    """
    running, residuals, scales = rows.running, norms[::2], norms[1::2]
    everyone, kept = np.arange(len(running)), keep >= 0
    last: Integers | int = len(residuals) - 1
    if step == 1:
        rows = rows._replace(first=residuals[0], first_scale=scales[0])
    if until is not None:
        met, last = running & (until <= len(residuals)), np.minimum(until, len(residuals)) - 1
    rows = rows._replace(
        best=np.where(kept, residuals[keep, everyone], rows.best),
        best_scale=np.where(kept, scales[keep, everyone], rows.best_scale),
        last_scale=np.where(running, scales[last, everyone], rows.last_scale),
    )
    if until is None and not spent:
        return rows
    status, stopped = rows.status, running
    if spent:
        status = np.where(running, np.where(rows.turn > 0, _STALLED, _MAX_STEPS), status)
    if until is not None:
        status, stopped = np.where(met, _CONVERGED, status), running if spent else met
    return rows._replace(status=status, running=running & ~stopped, steps=np.where(stopped, step + last, rows.steps))
