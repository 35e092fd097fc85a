"""Agreement with SciPy's solvers on classical problems, row by row, from the same starts."""

import numpy as np
import pytest
import scipy.optimize
import torch

from benchmarks.problems import PROBLEMS
from solvers import Anderson, Broyden, NewtonKrylov, solve


def scipy_root(problem, method):
    """(solution, f(solution)) of a one-row problem."""
    shape = problem.z0.shape

    def residual(flat):
        z = torch.tensor(flat).view(shape)
        return (problem.f(z) - z).flatten().cpu().numpy()

    options = {"fatol": 1e-13, "maxiter": 400}
    try:
        found = scipy.optimize.root(residual, problem.z0.flatten().cpu().numpy(), method=method, options=options)
    except (ValueError, OverflowError, np.linalg.LinAlgError):  # non-finite on the way
        return None
    good = np.isfinite(found.x).all() and np.abs(residual(found.x)).max() < 1e-10
    return torch.tensor(found.x).view(shape) if good else None


@pytest.mark.parametrize("device", ["cpu"])  # where the problems are made, once for all
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", PROBLEMS)
def test_our_solutions_are_scipys(name):
    problem = PROBLEMS[name].row(0)
    references = {m: scipy_root(problem, m) for m in ("krylov", "anderson", "broyden1")}
    references = {method: found for method, found in references.items() if found is not None}
    assert references, "SciPy solves each of these problems one way or another"
    distances = {}
    for solver in (Anderson(), Broyden(), NewtonKrylov()):
        solution = solve(problem.f, problem.z0, solver=solver, rtol=1e-12, atol=1e-13, max_steps=2000)
        if solution.converged.all():
            near = [(found - solution.value).norm() / solution.value.norm() for found in references.values()]
            distances[repr(solver)] = min(near).item()
    assert distances
    # the equation for c near 1 has a second solution close by
    judge = min if name == "Chandrasekhar 0.9999" else max
    assert judge(distances.values()) < 1e-7, distances
