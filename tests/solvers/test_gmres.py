"""GMRES for affine maps, against dense algebra and SciPy."""

import math

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


def textbook(matrix, b):
    """The least residual over the whole Krylov space: Arnoldi by modified Gram–Schmidt, twice, and least squares."""
    dim, basis = len(b), [b / b.norm()]
    hessenberg = torch.zeros(dim + 1, dim, dtype=b.dtype)
    for k in range(dim):
        w = matrix @ basis[k]
        for _ in range(2):
            for j, q in enumerate(basis):
                hessenberg[j, k] += q @ w
                w = w - (q @ w) * q
        hessenberg[k + 1, k] = w.norm()
        basis.append(w / w.norm())
    target = torch.zeros(dim + 1, 1, dtype=b.dtype)
    target[0] = b.norm()
    coefficients = torch.linalg.lstsq(hessenberg, target).solution
    return b - matrix @ (torch.stack(basis[:dim], 1) @ coefficients)[:, 0]


def conditioned(dim, condition):
    left, _, right = torch.linalg.svd(torch.randn(dim, dim, dtype=torch.float64))
    return left * torch.logspace(0, -math.log10(condition), dim, dtype=torch.float64) @ right


PLATEAUS = {
    "gaussian": lambda dim: torch.randn(dim, dim, dtype=torch.float64) / dim**0.5,
    "shift": lambda dim: torch.eye(dim, dtype=torch.float64).roll(1, 0),
    "expanding shift": lambda dim: torch.eye(dim, dtype=torch.float64) - 1.5 * torch.eye(dim).double().roll(1, 0),
    "rotation": lambda dim: torch.eye(dim, dtype=torch.float64) - 1.05 * torch.linalg.qr(conditioned(dim, 1.0))[0],
    "condition 10": lambda dim: conditioned(dim, 10.0),
    "condition 1000": lambda dim: conditioned(dim, 1000.0),
}


@pytest.mark.parametrize("device", ["cpu"])
@pytest.mark.parametrize("dim", [10, 60])
@pytest.mark.parametrize("name", PLATEAUS)
def test_it_ends_within_dim_steps_as_accurate_as_the_textbook(name, dim):
    """Where the residual stands still until the space is exhausted, each of four rows with a matrix of its own."""
    matrices = torch.stack([PLATEAUS[name](dim) for _ in range(4)])
    b = torch.randn(4, dim, dtype=torch.float64)

    def f(z):
        return z - torch.einsum("bij,bj->bi", matrices, z) + b

    # one evaluation for the start, one for each direction, one at the solution
    solution = solve(f, torch.zeros_like(b), solver=GMRES(restart=dim), rtol=0.0, atol=0.0, max_steps=dim + 2)
    found = b - torch.einsum("bij,bj->bi", matrices, solution.value)
    expected = torch.stack([textbook(matrix, row) for matrix, row in zip(matrices, b)])
    floor = 1e-16 * torch.linalg.cond(matrices).max() * b.norm(dim=1).max()
    assert found.norm(dim=1).max() <= 100 * (expected.norm(dim=1).max() + floor)
    scipy_x, info = scipy.sparse.linalg.gmres(matrices[0].numpy(), b[0].numpy(), rtol=1e-10, restart=dim, maxiter=1)
    assert info == 0
    assert found[0].norm() <= 1e-8 * b[0].norm()
    torch.testing.assert_close(solution.value[0], torch.from_numpy(scipy_x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [20, 31, 40, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_stay_orthogonal_over_a_long_plateau(dim, dtype):
    """Convection and diffusion, driven at the outflow: nothing falls before the last step, in single precision too."""
    ones = torch.ones(dim - 1, dtype=torch.float64)
    matrix = 2 * torch.eye(dim, dtype=torch.float64) - 1.5 * torch.diag(ones, 1) - 0.5 * torch.diag(ones, -1)
    b = torch.zeros(1, dim, dtype=torch.float64)
    b[0, -1] = 1
    narrow = matrix.to(dtype)
    solution = solve(
        lambda z: z - z @ narrow.T + b.to(dtype), torch.zeros(1, dim, dtype=dtype), solver=GMRES(), rtol=1e-5
    )
    assert solution.converged.all()
    assert int(solution.steps) <= dim + 3
    exact = torch.linalg.solve(matrix, b[0])
    assert (solution.value[0] - exact).norm() < (1e-4 if dtype == torch.float32 else 1e-12) * exact.norm()
