"""Rates of convergence that are known in closed form."""

import math
from functools import partial

import pytest
import torch

from implicit.diagnostics import convergence_rate, spectral_radius, tails
from solvers import Picard, Solution, solve

close = partial(torch.testing.assert_close, check_device=False)  # figures are on the processor


def trace_of(*columns):
    steps = max(len(column) for column in columns)
    padded = [[*column, *[math.nan] * (steps - len(column))] for column in columns]
    trace = torch.tensor(padded, dtype=torch.float64).T
    rows = torch.zeros(len(columns), dtype=torch.int64)
    return Solution(
        value=(),
        residual=trace[-1],
        status=rows,
        steps=rows,
        evaluations=rows,
        trace=trace,
        absolute=trace,
        floored=rows.bool(),
    )


def test_the_rate_of_plain_iteration_is_the_modulus_of_the_largest_eigenvalue():
    factors = torch.tensor([[0.5, 0.2], [0.9, 0.1], [-0.8, 0.3]], dtype=torch.float64)

    def f(z, factors):
        return factors * z + 1

    solution = solve(f, torch.zeros(3, 2).double(), (factors,), solver=Picard(), rtol=1e-12, atol=0, max_steps=400)
    expected = spectral_radius(f, solution.value, (factors,))
    close(convergence_rate(solution), expected, rtol=2e-3, atol=0)


def test_a_fast_start_does_not_count_and_a_row_that_stopped_has_its_own_tail():
    fast_then_slow = [10.0**-k for k in range(10)] + [1e-9 * 0.95**k for k in range(1, 40)]
    rates = convergence_rate(trace_of(fast_then_slow, [0.3**k for k in range(8)], [1.5**k for k in range(12)]))
    assert rates.tolist() == pytest.approx([0.95, 0.3, 1.5])


def test_standstill_cycles_and_short_traces_are_told_apart():
    falling, stalled, two, three, short = tails(
        trace_of(
            [0.9**k for k in range(30)],
            [0.5**k for k in range(10)] + [1e-3 * (1 + 1e-4 * (k % 7 == 0)) for k in range(40)],
            [0.3 if k % 2 else 0.2 for k in range(40)],
            [(0.3, 0.2, 0.25)[k % 3] for k in range(60)],
            [0.1, 0.01],
        )
    )
    assert not falling.stalled
    assert falling.period == 0
    assert stalled.stalled
    assert stalled.period == 0
    assert stalled.rate == pytest.approx(1, abs=1e-2)
    assert (two.period, two.stalled) == (2, False)
    assert (three.period, three.stalled) == (3, False)
    assert math.isnan(short.rate)
    assert not short.stalled
    assert short.period == 0


def test_zeros_and_values_that_are_not_finite_are_left_out():
    (tail,) = tails(trace_of([1.0, 0.5, 0.25, 0.125, math.inf, 0.0]))
    assert tail.rate == pytest.approx(0.5)


@pytest.mark.parametrize("period", [2, 3, 4, 5, 7, 9, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotations_by_a_part_of_a_turn_go_round_after_so_many_steps(period, dtype):
    angle = 2 * math.pi / period
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=dtype)
    bias = torch.tensor([1.0, 0.3], dtype=dtype)
    z0 = torch.tensor([[0.0, 0.0], [0.7, -0.2]], dtype=dtype)
    solution = solve(lambda z: z @ turn.T + bias, z0, solver=Picard(), max_steps=100)
    assert [tail.period for tail in tails(solution)] == [period, period]


def test_slow_convergence_is_neither_a_cycle_nor_a_standstill_and_gaps_are_no_steps():
    slow, slower = tails(trace_of([0.995**k for k in range(400)], [0.999**k for k in range(400)]))
    assert (slow.period, slow.stalled) == (slower.period, slower.stalled) == (0, False)
    noisy = [0.9**k * (1 + 0.3 * math.sin(7.1 * k)) for k in range(40)]
    assert tails(trace_of(noisy))[0].period == 0
    gaps = [0.5**k if k % 3 else math.nan for k in range(1, 20)]
    assert convergence_rate(trace_of(gaps)).item() == pytest.approx(0.5)
