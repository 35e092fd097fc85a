"""Each solver is the textbook's algorithm, iterate by iterate; and a solver of a user's own works."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from solvers import Anderson, Broyden, Picard, Solver, solve


def problem(dim=12):
    matrix = torch.randn(dim, dim, dtype=torch.float64) * 0.7 / dim**0.5
    shift = torch.randn(dim, dtype=torch.float64)
    return lambda z: torch.tanh(z @ matrix.T + shift)


def iterates(f, solver, count, dim=12):
    """The points at which f is evaluated."""
    seen = []

    def watched(z):
        seen.append(z[0].clone().cpu().numpy())
        return f(z)

    solve(watched, torch.zeros(1, dim, dtype=torch.float64), solver=solver, rtol=0.0, atol=0.0, max_steps=count)
    return np.array(seen)


def value(f, z):
    return f(torch.tensor(z)[None])[0].cpu().numpy()


def test_picard_is_the_damped_iteration():
    f, z, expected = problem(), np.zeros(12), []
    for _ in range(8):
        expected.append(z)
        z = z + 0.6 * (value(f, z) - z)
    np.testing.assert_allclose(iterates(f, Picard(damping=0.6), 8), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("damping", [1.0, 0.5])
@pytest.mark.parametrize("memory", [1, 3, 4])
@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_anderson_is_the_constrained_least_squares_mixing(memory, damping, period):
    # the form of Walker and Ni: weights that sum to 1 and minimise the mixed residual
    f, points, images, expected = problem(), [np.zeros(12)], [], []
    for step in range(14):
        z = points[-1]
        expected.append(z)
        images.append(value(f, z))
        mixes = step > 0 and (step - 1) % period == 0  # the first difference is used at once
        window = slice(max(0, len(points) - memory - 1) if mixes else step, None)
        residuals = np.array(images[window]) - np.array(points[window])
        count = len(residuals)
        system = np.block([[residuals @ residuals.T, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
        weights = np.linalg.solve(system, np.append(np.zeros(count), 1.0))[:count]
        points.append(weights @ np.array(points[window]) + damping * weights @ residuals)
    found = iterates(f, Anderson(memory=memory, period=period, damping=damping, ridge=0.0), 14)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_broyden_is_the_dense_good_broyden_update():
    f, z, inverse, expected = problem(), np.zeros(12), -np.eye(12), []
    residual = value(f, z) - z
    for _ in range(10):
        expected.append(z)
        step = -inverse @ residual
        z = z + step
        following = value(f, z) - z
        change = following - residual
        inverse += np.outer(step - inverse @ change, step @ inverse) / (step @ inverse @ change)
        residual = following
    np.testing.assert_allclose(iterates(f, Broyden(memory=12), 10), expected, rtol=1e-9, atol=1e-9)


def test_broyden_starts_again_when_its_history_is_full():
    f = problem()
    found = iterates(f, Broyden(memory=3), 6)
    # the fourth step from z_3 is a plain one
    np.testing.assert_allclose(found[4], value(f, found[3]), rtol=1e-12)


def test_a_short_history_suffices():
    for solver in (Anderson(memory=1), Broyden(memory=1), Broyden(memory=2)):
        solve(problem(), torch.zeros(2, 12, dtype=torch.float64), solver=solver, rtol=1e-8, max_steps=300).check()


def test_accelerated_solvers_solve_expanding_affine_maps():
    matrix = torch.diag(torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64))
    for solver in (Anderson(), Broyden()):
        solution = solve(lambda z: z @ matrix + 1, torch.zeros(1, 3, dtype=torch.float64), solver=solver, rtol=1e-8)
        assert solution.converged.all(), solution.summary()
        expected = 1 / (1 - matrix.diagonal())
        torch.testing.assert_close(solution.value[0], expected, rtol=1e-6, atol=1e-6)


@dataclass(frozen=True)
class Halfway(Solver):
    def init(self, z):
        return ()

    def step(self, memory, z, fz, residual):
        return z + residual / 2, memory


def test_a_solver_of_ones_own_is_one_class():
    solution = solve(lambda z: -z + 2, torch.zeros(3, 2), solver=Halfway(), compact=True).check()
    torch.testing.assert_close(solution.value, torch.ones(3, 2))
