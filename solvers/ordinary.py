"""Ordinary steps, at which rows continue or converge and nothing else happens: the rule for many of them at once.

Whether a row is stuck is checked late, and mostly never; the marks that decide it are computed only then.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .judge import RUNAWAY
from .rows import Bools, Floats, Integers, Rows, Rule
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
    if 0 < norms.size <= FEW and rows.running.all():
        few = _few(rule, start, least, norms)
        if few.number == len(norms) // 2:
            return few
    smooth = _smooth(rule, rows.running, start, least, step, norms)
    if smooth is not None:
        return smooth
    residuals, scales, running = norms[::2], norms[1::2], rows.running
    count, until = len(residuals), None
    with np.errstate(invalid="ignore", over="ignore"):
        finite = residuals + scales < inf
        met = running & finite & (residuals <= rule.tolerance(start[0] if rule.relative_to_start else scales))
        if met.any():
            met &= _counts(rule, start, step, residuals, scales)
            if met.any():
                until = np.where(met.any(0), met.argmax(0) + 1, count + 1)
                residuals = np.where(np.arange(count)[:, None] < until, residuals, inf)
        lowest = np.minimum.accumulate(np.concatenate((least[None], residuals)))
        fits = (residuals <= RUNAWAY * lowest[:-1]) & finite | ~running
    if until is not None:
        fits |= np.arange(count)[:, None] >= until - 1
    every = np.all(fits, axis=1)
    if not every.all():
        count = int(every.argmin())
        until = None if until is None or (until > count).all() else until
    fallen = lowest[1 : count + 1] < lowest[:count]
    keep = (
        np.where(running & fallen.any(0), count - 1 - fallen[::-1].argmax(0), -1) if count else np.full(len(least), -1)
    )
    if until is not None:
        keep = np.where(running & (until <= count), until - 1, keep)
    return Steps(count, keep, np.where(running, lowest[count], least), until)


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


def _smooth(
    rule: Rule, running: Bools, start: tuple[Floats, Floats], least: Floats, step: int, norms: Floats
) -> Steps | None:
    """`ordinary`, if all steps are because every residual is within RUNAWAY of the least; else None."""
    residuals, scales, count, until = norms[::2], norms[1::2], len(norms) // 2, None
    with np.errstate(invalid="ignore", over="ignore"):
        if not count or not np.maximum.reduce(norms, axis=None) < inf:
            return None
        highest = np.maximum.reduce(residuals)
        met = residuals <= rule.tolerance(start[0] if rule.relative_to_start else scales)
        if np.logical_or.reduce(met, axis=None):
            met &= _counts(rule, start, step, residuals, scales)
            until = np.where(np.logical_or.reduce(met), met.argmax(0) + 1, count + 1)
            residuals = np.where(np.arange(count)[:, None] < until, residuals, inf)
        lowest = np.minimum.reduce(residuals)
        fallen, lower = lowest < least, np.minimum(lowest, least)
        within = highest <= RUNAWAY * lower
    everyone = np.logical_and.reduce(running)
    if not np.logical_and.reduce(within if everyone else within | ~running):
        return None
    keep = np.where(fallen, residuals.argmin(0), -1)
    if until is not None:
        keep = np.where(until <= count, until - 1, keep)
    if not everyone:
        keep, lower = np.where(running, keep, -1), np.where(running, lower, least)
    if until is not None and not (running & (until <= count)).any():
        until = None
    return Steps(count, keep, lower, until)


def _counts(rule: Rule, start: tuple[Floats, Floats], step: int, residuals: Floats, scales: Floats) -> Bools:
    """Where meeting the tolerance is convergence: `Rule.genuine` and `min_steps`, for many steps at once."""
    steps = step + np.arange(len(residuals))[:, None]
    counts = residuals + 2 * rule.rounding * scales < start[0]  # the residual has fallen
    if not counts.all():
        sure = (steps == 1) | (steps > rule.exact_after) | rule.relative_to_start
        near = (residuals <= rule.tolerance(start[1])) & (scales <= 2 * start[1])
        counts |= sure | near
    return counts & (steps >= rule.min_steps) if rule.min_steps > step else counts


def passed(
    rule: Rule, rows: Rows, step: int, norms: Floats, until: Integers | None = None, spent: bool = False
) -> Rows:
    """The rows after ordinary steps, as `judge` would leave them, except for the marks, which `marked` computes.

    Args:
        rule, rows, step, norms: as above.
        until: for each row, the number of these steps after which it converges; larger if it does not.
        spent: whether the other rows have used up their steps.
    """
    running, residuals, scales = rows.running, norms[::2], norms[1::2]
    if step == 1:
        rows = rows._replace(first=residuals[0], first_scale=scales[0])
    count, everyone, met = len(residuals), np.arange(len(running)), np.zeros_like(running)
    last = np.full(len(running), count - 1)
    if until is not None:
        met, last = running & (until <= count), np.minimum(until, count) - 1
    with np.errstate(invalid="ignore"):
        at = np.where(met, last, residuals.argmin(0)), everyone
        found = residuals[at]
        better = met | (running & (found < rows.best))
    rows = rows._replace(
        best=np.where(better, found, rows.best),
        best_scale=np.where(better, scales[at], rows.best_scale),
        last_scale=np.where(running, scales[last, everyone], rows.last_scale),
    )
    if until is None:
        return rows
    status, stopped = np.where(met, _CONVERGED, rows.status), met
    if spent:
        status = np.where(running & ~met, np.where(rows.turn > 0, _STALLED, _MAX_STEPS), status)
        stopped = running
    return rows._replace(status=status, running=running & ~stopped, steps=np.where(stopped, step + last, rows.steps))
