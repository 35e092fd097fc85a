"""`max_steps` is the budget of a row, whatever becomes of it; `min_steps` are taken in any case."""

import pytest
import torch

from solvers import GMRES, Anderson, Broyden, Eager, Monotone, NewtonKrylov, Picard, Status, solve

SOLVERS = [Picard(), Anderson(), Anderson(memory=2), Broyden(), Monotone(), GMRES()]


class Counted:
    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, *args):
        self.calls += 1
        return self.f(*args)


def wandering(z):
    weight = 5 / 8 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    return torch.sin(z @ weight.to(z) + 1)


HARD = {
    "wanders": wandering,
    "slow": lambda z: 0.999 * z.roll(1, 1) + 1,
    "runs away": lambda z: z + 1,
    "explodes": lambda z: z.exp() + 1,
    "logistic": lambda z: 3.9 * z.sigmoid() * (1 - z.sigmoid()),
    "not finite": lambda z: (z - 1).log(),
}


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("max_steps", [1, 31, 36, 64, 100])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("name", HARD)
def test_no_row_costs_more_than_its_budget(name, solver, max_steps, compact):
    f = Counted(HARD[name])
    start = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    solution = solve(f, start, solver=solver, rtol=1e-9, max_steps=max_steps, compact=compact)
    assert f.calls <= max_steps + 1
    assert solution.evaluations.max() <= max_steps + 1
    assert solution.steps.max() <= max_steps


@pytest.mark.parametrize("inner_steps", [1, 5, 30])
def test_a_newton_step_counts_for_its_products(inner_steps):
    f = Counted(wandering)
    solution = solve(f, torch.zeros(4, 64), solver=NewtonKrylov(inner_steps), rtol=1e-9, max_steps=10)
    assert f.calls <= 10 * (inner_steps + 2) + 1
    assert solution.evaluations.max() <= 10 * (inner_steps + 2) + 1


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("loop", [Eager(), Eager(3)], ids=repr)
def test_each_row_may_have_a_budget_of_its_own(compact, loop):
    limits = torch.tensor([3, 1, 40, 7])
    shift = torch.ones(4, 5)
    options = {"solver": Picard(), "rtol": 1e-9, "compact": compact, "loop": loop}
    solution = solve(lambda z, b: 0.95 * z + b, torch.zeros(4, 5), (shift,), max_steps=limits, **options)
    assert torch.equal(solution.steps, limits)
    assert (solution.status == Status.MAX_STEPS).all()
    for row, limit in enumerate(limits.tolist()):
        alone = solve(lambda z, b: 0.95 * z + b, torch.zeros(1, 5), (shift[:1],), max_steps=limit, **options)
        torch.testing.assert_close(alone.value[0], solution.value[row])


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_so_many_steps_are_taken_in_any_case(solver):
    matrix = torch.diag(torch.tensor([0.5, 0.4, -0.3], dtype=torch.float64))
    start, options = torch.zeros(2, 3, dtype=torch.float64), {"solver": solver, "rtol": 1e-2}
    usual = solve(lambda z: z @ matrix + 1, start, **options).check()
    longer = solve(lambda z: z @ matrix + 1, start, min_steps=12, **options).check()
    assert usual.steps.max() < 12
    assert (longer.steps == 12).all()
    assert (longer.residual <= usual.residual).all()


def test_what_stays_bounded_has_stalled():
    start = torch.linspace(1e-3, 0.99, 50)[:, None]
    for solver in (Picard(), Anderson(), Broyden()):
        solution = solve(lambda z: 3.9 * z * (1 - z), start, solver=solver)
        assert Status.DIVERGED not in solution.status.tolist()
    normalised = torch.nn.functional.normalize
    matrix = 3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    for solver in (Picard(), Anderson(), Broyden(), Monotone()):
        solution = solve(lambda z: normalised(z @ matrix + 0.1, dim=1), torch.randn(20, 16), solver=solver)
        assert Status.DIVERGED not in solution.status.tolist()


@pytest.mark.parametrize("solver", [*SOLVERS, NewtonKrylov()], ids=repr)
def test_advice_is_another_solver(solver):
    solution = solve(wandering, torch.zeros(1, 64), solver=solver, max_steps=20, rtol=1e-12)
    if not solution.converged.all():
        name = type(solver).__name__
        assert f"try {name}" not in solution.summary().replace(f"{name} with", "")
