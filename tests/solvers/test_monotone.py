"""Monotone: cells whose weights are too large for every other solver."""

import pytest
import torch

from solvers import Anderson, Broyden, Monotone, Picard, Status, solve


def cell(width, hidden, activation, norm=10.0, rows=128, seed=0):
    """z ↦ v − Wᵀσ(Wz + b), written out: the gradient step of a convex function, of any steepness."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(hidden, width, generator=generator, dtype=torch.float64)
    weight *= norm / torch.linalg.matrix_norm(weight, 2)
    bias = torch.randn(hidden, generator=generator, dtype=torch.float64)
    v = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return (lambda z, v: v - activation(z @ weight.T + bias) @ weight), v


def test_a_hundred_evaluations_suffice_at_norm_ten():
    solved = []
    for activation in (torch.relu, torch.tanh, torch.nn.functional.softplus):
        for width, hidden in [(8, 16), (32, 64), (64, 64), (64, 256)]:
            f, v = cell(width, hidden, activation)
            solution = solve(f, v, (v,), solver=Monotone(), rtol=1e-6, atol=0.0, max_steps=100)
            assert solution.evaluations.max() <= 100
            image = f(solution.value, v)
            relative = (image - solution.value).norm(dim=1) / image.norm(dim=1)
            assert (relative[solution.converged] <= 1.0001e-6).all()
            solved.append(solution.converged)
    assert torch.cat(solved).double().mean() >= 0.99
    assert all(rows.double().mean() >= 0.9 for rows in solved)


def test_the_others_fail_there():
    f, v = cell(32, 64, torch.relu)
    for solver in (Picard(), Anderson(memory=5), Broyden()):
        assert solve(f, v, (v,), solver=solver, rtol=1e-6, atol=0.0).converged.double().mean() < 0.5


@pytest.mark.parametrize("norm", [0.5, 3.0, 30.0, 100.0])
def test_any_norm_is_solved_in_the_end(norm):
    f, v = cell(16, 32, torch.relu, norm=norm, rows=16)
    solution = solve(f, v, (v,), solver=Monotone(), rtol=1e-6, atol=0.0, max_steps=5000).check()
    # certified by strong monotonicity: ‖z − z*‖ ≤ ‖residual‖, so that two starts agree
    other = solve(f, torch.zeros_like(v), (v,), solver=Monotone(), rtol=1e-6, atol=0.0, max_steps=5000).check()
    bound = 2.1e-6 * f(solution.value, v).norm(dim=1)
    assert ((solution.value - other.value).norm(dim=1) <= bound + 1e-12).all()


def test_accepted_points_never_grow():
    f, v = cell(32, 64, torch.relu, rows=4)
    solution = solve(f, v, (v,), solver=Monotone(), rtol=1e-6, atol=0.0)
    best = solution.trace.nan_to_num(torch.inf).cummin(0).values
    assert (best.diff(dim=0) <= 0).all()
    assert solution.status.tolist() == [Status.CONVERGED] * 4
