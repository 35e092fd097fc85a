"""GMRES for affine maps, against dense algebra and SciPy."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from solvers import GMRES, Status, solve


def system(dim, rows=3, gain=0.9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = gain * torch.randn(rows, dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    return matrix, torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def affine(z, matrix, shift):
    return torch.einsum("bij,bj->bi", matrix, z) + shift


@pytest.mark.parametrize("gain", [0.5, 0.95, 3.0])
def test_it_ends_after_as_many_products_as_dimensions(gain):
    matrix, shift = system(12, gain=gain)
    solution = solve(
        affine, torch.zeros_like(shift), (matrix, shift), solver=GMRES(restart=20), rtol=1e-12, atol=0.0
    ).check()
    exact = torch.linalg.solve(torch.eye(12) - matrix, shift)
    torch.testing.assert_close(solution.value, exact, rtol=1e-9, atol=1e-9)
    assert solution.evaluations.max() <= 14, "one for z0, one a product, one at the solution"


def test_it_needs_what_scipys_gmres_needs():
    matrix, shift = system(60, rows=1, gain=0.8)
    operator = np.eye(60) - matrix[0].cpu().numpy()
    residuals = []
    scipy.sparse.linalg.gmres(
        operator, shift[0].cpu().numpy(), rtol=1e-8, restart=60, callback=residuals.append, callback_type="pr_norm"
    )
    solution = solve(affine, torch.zeros_like(shift), (matrix, shift), solver=GMRES(restart=60), rtol=1e-8, atol=0.0)
    assert solution.converged.all()
    assert solution.evaluations.item() <= len(residuals) + 3


@pytest.mark.parametrize("kind", ["disc", "circle"])
def test_the_default_needs_little_more_than_without_a_restart(kind):
    noise = torch.randn(200, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = 0.9 * (noise / 200**0.5 if kind == "disc" else torch.linalg.qr(noise)[0])
    shift = torch.randn(8, 200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for rtol in (1e-4, 1e-6):
        spent = [
            solve(lambda z: z @ matrix.T + shift, torch.zeros_like(shift), solver=solver, rtol=rtol, max_steps=300)
            .check()
            .evaluations.double()
            .mean()
            for solver in (GMRES(), GMRES(restart=200))
        ]
        assert spent[0] <= 1.15 * spent[1]


def test_it_restarts():
    matrix, shift = system(40, gain=0.7)
    solve(
        affine, torch.zeros_like(shift), (matrix, shift), solver=GMRES(restart=4), rtol=1e-8, atol=0.0, max_steps=200
    ).check()


def test_a_rotation_on_which_minimal_residual_stagnates_is_solved():
    # the residual of a cyclic shift does not fall before the last direction
    shift = torch.zeros(1, 20, dtype=torch.float64)
    shift[0, 0] = 1.0
    solution = solve(
        lambda z: 1.5 * z.roll(1, dims=1) + shift,
        torch.zeros_like(shift),
        solver=GMRES(restart=30),
        rtol=1e-10,
        atol=0.0,
    )
    assert solution.converged.all(), solution.summary()
    assert solution.evaluations.item() <= 23


def test_a_nonlinear_map_is_never_taken_for_solved():
    solution = solve(lambda z: torch.tanh(3 * z + 1), torch.ones(4, 8), solver=GMRES(), rtol=1e-5)
    image = torch.tanh(3 * solution.value + 1)
    relative = (image - solution.value).norm(dim=1) / image.norm(dim=1)
    assert (relative[solution.status == Status.CONVERGED] <= 1.01e-5).all()
