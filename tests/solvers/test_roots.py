"""`root` on the classical systems of equations, beside SciPy's methods from the same starts."""

from functools import cache

import numpy as np
import pytest
import scipy.optimize
import torch

from solvers import root

from .root_problems import PROBLEMS

RTOL, ATOL = 1e-6, 1e-10
STEPS = 100

UNSOLVED = {
    # no method of SciPy's solves it, either: ‖F‖ has a bend near the start from which every descent creeps
    "generalized Rosenbrock",
}


def goal(problem):
    """The residual at which a problem counts as solved."""
    return RTOL * problem.F(problem.z0).norm().item() + ATOL


def row_problem(problem):
    """F of vectors, in NumPy."""
    return lambda x: problem.F(torch.tensor(x, dtype=torch.float64)[None])[0].cpu().numpy()


@cache
def solved_by_scipy(name):
    """The methods of `scipy.optimize.root` that reach the goal, in `STEPS` steps where they count steps."""
    problem, solved = PROBLEMS[name], []
    F, enough = row_problem(problem), goal(PROBLEMS[name])
    counted = {"fatol": enough / problem.dim**0.5, "maxiter": STEPS}
    options = {"hybr": {"xtol": 1e-12}, "lm": {"xtol": 1e-14, "ftol": 1e-14}, "df-sane": {"fatol": enough, "ftol": 0.0}}
    for method in ("hybr", "lm", "df-sane", "krylov", "broyden1", "anderson"):
        try:
            found = scipy.optimize.root(F, np.array(problem.start), method=method, options=options.get(method, counted))
        except (ValueError, OverflowError, ZeroDivisionError, np.linalg.LinAlgError):  # not finite on the way
            continue
        if np.linalg.norm(F(found.x)) <= enough:
            solved.append(method)
    return solved


@cache
def solved_by_us(name):
    problem = PROBLEMS[name]
    solution = root(problem.F, problem.z0, rtol=RTOL, atol=ATOL)
    solved = problem.F(solution.value).norm().item() <= goal(problem)
    assert solved == solution.converged.item(), solution.summary()
    return solved


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_roots_in_the_literature_are_roots(name):
    problem = PROBLEMS[name]
    slope = torch.autograd.functional.jacobian
    for known in problem.roots:
        z = torch.tensor([known], dtype=torch.float64)
        # as far as the digits go: half a unit of the sixth place
        allowed = 2e-6 * slope(problem.F, z).abs().sum().item()
        assert problem.F(z).norm().item() <= min(allowed, 1e-3 * problem.F(problem.z0).norm().item())


@pytest.mark.parametrize("name", PROBLEMS)
def test_rows_are_problems_of_their_own(name):
    problem = PROBLEMS[name]
    z = problem.z0 + torch.randn(3, problem.dim, dtype=torch.float64)
    torch.testing.assert_close(problem.F(z), torch.cat([problem.F(row[None]) for row in z]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", PROBLEMS)
def test_what_one_of_scipys_methods_solves_is_solved(name):
    solvers = solved_by_scipy(name)
    if name in UNSOLVED:
        assert not solvers, "it can be solved"
        assert not solved_by_us(name), "it is solved: take it off the list"
    else:
        assert solved_by_us(name), f"SciPy's {', '.join(solvers) or 'methods do not'} solve it"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_method_of_scipys_solves_as_many():
    ours = sum(map(solved_by_us, PROBLEMS))
    theirs = [method for name in PROBLEMS for method in solved_by_scipy(name)]
    assert ours > max(map(theirs.count, theirs))
