"""Error bounds, Lyapunov exponents, path independence and work: where the answer is known."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from implicit import Equilibrium
from implicit.diagnostics import compare_solvers, error_bound, lyapunov_exponents, path_independence
from solvers import Anderson, Broyden, Monotone, Picard, solve

close = partial(torch.testing.assert_close, check_device=False)  # figures are on the processor


def test_certified_bounds_hold_at_any_point_and_estimates_near_the_solution():
    torch.manual_seed(0)
    weight = 3 * torch.randn(6, 6, dtype=torch.float64)

    def f(z, v):  # z − f(z) is 1-strongly monotone at any weight
        return v - torch.tanh(z @ weight.T) @ weight

    v = torch.randn(8, 6, dtype=torch.float64)
    exact = solve(f, torch.zeros_like(v), (v,), solver=Monotone(), rtol=1e-13, atol=0, max_steps=3000).value
    for scale in (1e-4, 1e-1, 10.0):
        z = exact + scale * torch.randn_like(v)
        bound = error_bound(f, z, (v,), monotonicity=1.0)
        assert bound.certified
        assert bool((bound.value >= (z - exact).norm(dim=1) - 1e-10).all())
    near = exact + 1e-5 * torch.randn_like(v)
    estimate = error_bound(f, near, (v,))
    assert not estimate.certified
    close(estimate.value, (near - exact).norm(dim=1), rtol=2e-2, atol=0)


def test_a_contraction_has_a_certified_bound_too():
    weight = torch.randn(5, 5, dtype=torch.float64)
    weight *= 0.8 / torch.linalg.matrix_norm(weight, 2)

    def f(z):
        return torch.tanh(z @ weight.T + 1)

    exact = solve(f, torch.zeros(4, 5).double(), rtol=1e-14, atol=0, max_steps=500).value
    z = exact + torch.randn_like(exact)
    bound = error_bound(f, z, monotonicity=1 - 0.8)
    assert bound.certified
    assert bool((bound.value >= (z - exact).norm(dim=1)).all())


def test_the_estimate_is_exact_for_affine_maps_and_nan_where_there_is_none():
    matrix = torch.tensor([[0.5, 2.0], [0.0, 0.8]], dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(2) - matrix, torch.ones(2, dtype=torch.float64))
    z = torch.randn(3, 2, dtype=torch.float64)
    bound = error_bound(lambda z: z @ matrix.T + 1, z)
    close(bound.value, (z - exact).norm(dim=1), rtol=1e-2, atol=0)
    assert error_bound(lambda z: z + 1, z).value.isnan().all()
    with pytest.raises(ValueError, match="monotonicity=0 must be"):
        error_bound(lambda z: z, z, monotonicity=0)


def test_exponents_of_linear_maps_are_the_logarithms_of_their_moduli():
    matrix = torch.tensor([[0.9, 5.0, 0.0], [0.0, -0.5, 1.0], [0.0, 0.0, 0.2]], dtype=torch.float64)
    exponents = lyapunov_exponents(lambda z: z @ matrix.T, torch.randn(2, 3, dtype=torch.float64), k=3, steps=400)
    expected = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64).log().expand(2, 3)
    close(exponents, expected, rtol=0, atol=1e-2)


def test_exponents_of_the_logistic_map_and_of_henons():
    z = torch.tensor([[0.2], [0.37]], dtype=torch.float64)
    logistic = lyapunov_exponents(lambda z: 4 * z * (1 - z), z, steps=2000)
    close(logistic, torch.full((2, 1), math.log(2), dtype=torch.float64), rtol=0, atol=3e-2)

    def henon(z):
        return torch.stack((1 - 1.4 * z[:, 0].square() + z[:, 1], 0.3 * z[:, 0]), dim=1)

    exponents = lyapunov_exponents(henon, torch.tensor([[0.1, 0.1]], dtype=torch.float64), k=2, steps=1500)[0]
    assert exponents.sum().item() == pytest.approx(math.log(0.3), abs=1e-9)
    assert exponents[0].item() == pytest.approx(0.419, abs=3e-2)  # the literature's value
    with pytest.raises(ValueError, match="k=3 must be an integer from 1 to 2"):
        lyapunov_exponents(henon, torch.zeros(1, 2), k=3)


class Polynomial(nn.Module):
    """z ↦ tanh(slope z) + x: one equilibrium at slope ≤ 1, two stable ones above."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, z, x):
        return torch.tanh(self.slope * z) + x


def test_one_equilibrium_is_reached_from_everywhere_and_two_are_told():
    x = torch.full((5, 1), 0.01, dtype=torch.float64)
    single = path_independence(Equilibrium(Polynomial(0.7), rtol=1e-8), x)
    assert single.spread.max() < 1e-6
    assert single.alignment.min() > 1 - 1e-9
    assert single.converged.shape == (8, 5)
    assert single.converged.all()
    double = path_independence(Equilibrium(Polynomial(3.0), solver=Picard(), rtol=1e-8), x)
    assert double.alignment.min() < -0.9
    assert double.spread.max().item() == pytest.approx(2, abs=0.1)
    with pytest.raises(ValueError, match="starts=0"):
        path_independence(Equilibrium(Polynomial(0.7)), x, starts=0)


def test_work_is_what_solve_counts_and_rises_with_precision():
    torch.manual_seed(0)
    weight = torch.randn(20, 20).double()
    weight *= 0.9 / torch.linalg.matrix_norm(weight, 2)
    z0 = torch.zeros(4, 20).double()

    def f(z):
        return torch.tanh(z @ weight.T + 1)

    solvers = {"picard": Picard(), "anderson": Anderson(), "broyden": Broyden()}
    rows = compare_solvers(f, z0, solvers=solvers, rtols=[1e-3, 1e-8])
    assert [(row.name, row.rtol) for row in rows] == [(name, rtol) for name in solvers for rtol in (1e-3, 1e-8)]
    for row in rows:
        solution = solve(f, z0, solver=solvers[row.name], rtol=row.rtol, atol=0, max_steps=1000)
        assert row.evaluations == solution.evaluations.double().mean()
        assert row.residual == solution.residual.max() <= row.rtol
        assert row.converged == 1
        assert row.to_dict()["seconds"] > 0
    assert all(rows[i].evaluations < rows[i + 1].evaluations for i in (0, 2, 4))
    with pytest.raises(ValueError, match="at least one solver"):
        compare_solvers(f, z0, solvers={})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_certified_bounds_hold_whatever_the_dtype_rounds(dtype):
    z = solve(lambda z: 0.99 * z + 0.01, torch.zeros(3, 2, dtype=dtype), rtol=0, atol=0).value
    bound = error_bound(lambda z: 0.99 * z + 0.01, z, monotonicity=0.01)
    assert bool((bound.value >= (z.double() - 1).norm(dim=1)).all())


def test_where_newtons_step_leads_nowhere_there_is_no_estimate():
    z = torch.tensor([[-0.4], [0.3]], dtype=torch.float64)
    assert error_bound(lambda z: z + 1 + z**2, z).value.isnan().all()
    assert error_bound(lambda z: z + torch.exp(-z), z).value.isnan().all()


def test_paths_that_all_lead_to_zero_are_aligned():
    class Halves(nn.Module):
        def forward(self, z, x):
            return 0.0 * z

    found = path_independence(Equilibrium(Halves()), torch.randn(3, 4))
    assert found.alignment.tolist() == [1, 1, 1]
    assert found.spread.tolist() == [0, 0, 0]
