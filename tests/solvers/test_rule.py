"""One rule: whatever the traces of norms, steps that are collected without asking it end where it would have."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solvers import Status
from solvers.judge import judge
from solvers.progress import Look, Progress
from solvers.rows import RUNNING, Rows, Rule

LEVELS = [0.0, 1e-300, 1e-12, 1e-6, 0.4, 0.5, 0.74, 0.76, 1.0, 1.0 - 1e-9, 2.0, 40.0, 1e5, 1e30, np.inf, np.nan]
residuals = st.one_of(st.sampled_from(LEVELS), st.floats(1e-9, 1e3))
scales = st.one_of(st.just(1.0), st.sampled_from(LEVELS), st.floats(1e-3, 1e3))


@st.composite
def traces(draw):
    """Norms of some looks at some rows, most of them falling, so that some looks are collected."""
    rows = draw(st.integers(1, 3))
    looks = draw(st.lists(st.one_of(st.integers(1, 4), st.just(13)), min_size=1, max_size=14))
    falling = np.full(rows, draw(st.floats(1e-3, 1e3)))
    lines = []
    for _ in range(sum(looks)):
        factor = np.array(draw(st.lists(st.sampled_from([0.5, 0.8, 0.999, 1.0, 1.3]), min_size=rows, max_size=rows)))
        falling = falling * factor
        if draw(st.integers(0, 9)) == 0:
            falling = np.array(draw(st.lists(residuals, min_size=rows, max_size=rows)))
        odd = draw(st.integers(0, 4)) == 0
        scale = draw(st.lists(scales, min_size=rows, max_size=rows)) if odd else [1.0] * rows
        lines += [falling, np.array(scale)]
    told = draw(st.lists(st.booleans(), min_size=1, max_size=5))  # after which the rows are asked for
    return looks, np.array(lines), told


rules = st.builds(
    Rule,
    rtol=st.sampled_from([0.0, 1e-6, 1e-2]),
    atol=st.sampled_from([0.0, 1e-8]),
    rounding=st.sampled_from([2.0**-52, 2.0**-23, 2.0**-7]),
    min_steps=st.sampled_from([0, 5]),
    may_leap=st.booleans(),
    backtracks=st.booleans(),
    turns=st.sampled_from([(), (2,), (1, 2), (1,)]),
    exact_after=st.sampled_from([np.inf, np.inf, 7]),
    relative_to_start=st.booleans(),
)


def hold(rows, norms):
    """Rows that are held, as the loop holds them: a stopped row keeps the norms of its value."""
    held = ~rows.running
    norms = norms.copy()
    norms[::2, held] = np.where(np.isfinite(rows.best), rows.best, np.nan)[held]
    norms[1::2, held] = rows.best_scale[held]
    return norms


@settings(max_examples=400, deadline=None)
@example(  # a residual whose image is not finite is the mark, but not the best
    Rule(1e-6, 0.0, 2.0**-52, turns=(2,), exact_after=7),
    ([1, 2], np.array([[0.5], [np.inf], [0.4], [1.0], [0.3996], [1.0]]), [False]),
    [3] * 3,
    2,
    False,
)
@given(
    rules,
    traces(),
    st.one_of(st.integers(1, 60).map(lambda limit: [limit] * 3), st.lists(st.integers(1, 60), min_size=3, max_size=3)),
    st.integers(1, 12),
    st.booleans(),
)
def test_the_fast_path_ends_where_the_rule_does(rule, trace, limits, patience, many):
    looks, lines, told = trace
    limits, copies = np.array(limits[: lines.shape[1]]), 50 if many else 1  # beyond a number of rows, NumPy compares
    lines, limits = np.tile(lines, (1, copies)), np.tile(limits, copies)
    count = len(limits)
    fresh = Rows.fresh(limits, patience)
    progress, plain, step, line = Progress(rule, fresh), fresh, 1, 0
    for look in looks:
        norms = hold(plain, lines[line : line + 2 * look])
        falls = look == 1 and progress.falls(torch.from_numpy(norms), torch.float64)
        seen = Look(np.zeros(count, dtype=int), None, False) if falls else progress.see(norms)
        expected = judge(rule, plain, step, norms)
        plain = expected.rows
        np.testing.assert_array_equal(seen.keep, expected.keep, err_msg=f"iterates kept after step {step}")
        assert seen.coupled == expected.coupled
        assert (expected.restart if seen.restart is None else seen.restart == expected.restart).all() or not (
            seen.restart is not None or expected.restart.any()
        )
        stop = not plain.running.any() or line + 2 * look == len(lines)
        for name in Rows._fields if stop or told[step % len(told)] else ():
            found, expected = getattr(progress.marked_rows, name), getattr(plain, name)
            np.testing.assert_array_equal(found, expected, err_msg=f"{name} after step {step}")
        step, line = step + look, line + 2 * look
        if not plain.running.any():
            break


def outcome(residual, scale=1.0, limit=100, **options):
    """What becomes of one row with these residuals."""
    rule = Rule(**{"rtol": 1e-4, "atol": 0.0, "rounding": 2.0**-52, **options})
    rows = Rows.fresh(np.array([limit]), 30)
    for step, value in enumerate(residual, 1):
        size = scale[step - 1] if isinstance(scale, list) else scale
        rows = judge(rule, rows, step, np.array([[value], [size]])).rows
        if not rows.running[0]:
            return Status(rows.status[0]), step
    return rows.status[0], len(residual)


@pytest.mark.parametrize(
    ("residual", "scale", "options", "expected"),
    [
        ([1.0, 0.1, 1e-5], 1.0, {}, (Status.CONVERGED, 3)),
        ([1.0, 0.1, 1e-5, 1e-6], 1.0, {"min_steps": 4}, (Status.CONVERGED, 4)),
        ([1.0] * 60, 1.0, {}, (Status.STALLED, 31)),
        ([0.99**k for k in range(60)], 1.0, {}, (RUNNING, 60)),  # slow, and no solver that may be caught
        ([0.995**k for k in range(60)], 1.0, {"turns": (1, 2)}, (RUNNING, 60)),  # somebody else's turn
        ([1.0] * 60, [1.1**k for k in range(60)], {}, (Status.DIVERGED, 31)),
        ([1.0] * 60, [1.0 + k for k in range(60)], {}, (Status.DIVERGED, 31)),  # f = z + b
        ([0.01, *[0.9, 0.3] * 30], [0.04, *[0.97, 0.4] * 30], {}, (Status.STALLED, 31)),  # bounded: it wanders
        ([1.0, np.nan], 1.0, {}, (Status.NON_FINITE, 2)),
        ([1.0, np.inf], [1.0, np.inf], {}, (Status.NON_FINITE, 2)),
        ([1.0, 1e6, np.inf], [1.0, 1e6, np.inf], {}, (Status.DIVERGED, 3)),
        ([1.0, np.nan, 1.0, np.nan], 1.0, {"may_leap": True}, (RUNNING, 4)),  # the solver leapt, and is brought back
        ([1.0, np.nan, np.nan], 1.0, {"may_leap": True}, (Status.NON_FINITE, 3)),  # f is not finite where it was
        ([1.0, 0.5, 0.25], 1.0, {"limit": 3}, (Status.MAX_STEPS, 3)),
        ([1.0, 1.0, 1.0], [1.0, 1e5, 1e9], {"limit": 3}, (Status.MAX_STEPS, 3)),  # a relative test met by growth alone
        ([1e-5, 1e-5, 1e-12], 1.0, {"relative_to_start": True}, (Status.CONVERGED, 3)),
    ],
)
def test_each_status_by_an_example(residual, scale, options, expected):
    assert outcome(residual, scale, **options) == expected
