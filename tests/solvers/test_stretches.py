"""`check_every` and `compile` change how often the host looks, not what is found."""

import shutil
import warnings

import pytest
import torch
import torch._dynamo

from solvers import Anderson, Broyden, Captured, Compiled, Eager, NewtonKrylov, Picard, solve
from solvers.loops import compiled
from solvers.run import Run

MATRIX = 0.2 * torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SHIFT = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
FACTOR = torch.linspace(0.05, 1.0, 6, dtype=torch.float64)[:, None]


def arguments():
    """Factors and shifts, where the test runs."""
    return tuple(part.to(torch.get_default_device()) for part in (FACTOR, SHIFT))


def f(z, factor, shift):
    return torch.tanh(factor * (z @ MATRIX.to(z).T) + shift)


def same(found, expected):
    assert torch.equal(found.status, expected.status)
    assert torch.equal(found.steps, expected.steps)
    assert torch.equal(found.evaluations, expected.evaluations)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.residual, expected.residual, rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(found.trace, expected.trace, rtol=1e-4, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("check_every", [2, 3, 7, 200])
@pytest.mark.parametrize("solver", [Picard(), Anderson(memory=3), Broyden(memory=4), NewtonKrylov()], ids=repr)
def test_looking_less_often_finds_the_same(solver, check_every, compact):
    options = {"solver": solver, "rtol": 1e-9, "atol": 0.0, "compact": compact}
    expected = solve(f, torch.zeros(6, 16, dtype=torch.float64), arguments(), **options).check()
    found = solve(f, torch.zeros(6, 16, dtype=torch.float64), arguments(), loop=Eager(check_every), **options)
    same(found, expected)


def test_max_steps_is_kept():
    solution = solve(
        f,
        torch.zeros(6, 16, dtype=torch.float64),
        arguments(),
        solver=Picard(),
        rtol=0.0,
        atol=0.0,
        max_steps=10,
        loop=Eager(4),
    )
    assert solution.trace.shape == (10, 6)
    assert (solution.steps == 10).all()


def test_failures_are_told_apart_between_looks():
    calls = iter(range(1000))

    def breaking(z):
        image = z / 2 + 1
        return torch.where(torch.tensor([[next(calls) >= 5], [False]]), torch.nan, image)

    solution = solve(breaking, torch.zeros(2, 1), solver=Picard(), rtol=1e-5, loop=Eager(8))
    assert [solution.status[0].item(), solution.status[1].item()] == [4, 0]
    assert solution.steps[0].item() == 6
    assert solution.value.isfinite().all()


@pytest.mark.parametrize("device", ["cpu"])  # a default device would count each look twice
def test_it_looks_as_seldom_as_asked(monkeypatch):
    looks = 0
    original = Run.look

    def counted(self, *arguments):
        nonlocal looks
        looks += 1
        return original(self, *arguments)

    monkeypatch.setattr(Run, "look", counted)
    start = torch.zeros(6, 16, dtype=torch.float64)
    solve(lambda z: 0.999 * z + SHIFT.to(z), start, solver=Picard(), rtol=1e-9, atol=0.0, max_steps=25, loop=Eager(8))
    assert looks == 1 + 3


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("solver", [Picard(), Anderson(memory=3)], ids=repr)
def test_compiled_steps_find_the_same(solver):
    options = {"solver": solver, "rtol": 1e-6, "atol": 0.0, "max_steps": 9}
    expected = solve(f, torch.zeros(6, 16, dtype=torch.float64), arguments(), **options)
    found = solve(f, torch.zeros(6, 16, dtype=torch.float64), arguments(), loop=Compiled(4), **options)
    same(found, expected)


def test_more_solves_than_graphs_are_kept_of(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "MOST", 3)
    compiled._warn_of_limit.cache_clear()
    told = []
    for width in range(1, 7):
        with warnings.catch_warnings(record=True) as found, torch._dynamo.config.patch(recompile_limit=1):
            warnings.simplefilter("always")
            solution = solve(torch.cos, torch.zeros(2, width), solver=Picard(), loop=Compiled(2)).check()
        torch.testing.assert_close(solution.value, torch.full((2, width), 0.7390851), rtol=1e-3, atol=0)
        told += [str(each.message) for each in found if "graphs" in str(each.message)]
    assert len(told) == 1
    assert "recompile_limit" in told[0]
    torch._dynamo.reset()


def test_what_cannot_be_compiled_is_named():
    with pytest.raises(ValueError, match=r"Compiled.* needs fixed shapes.*compact=False"):
        solve(torch.cos, torch.zeros(2, 1), compact=True, loop=Compiled())
    with pytest.raises(ValueError, match="NewtonKrylov does not have"):
        solve(torch.cos, torch.zeros(2, 1), solver=NewtonKrylov(), loop=Compiled())
    with pytest.raises(ValueError, match="check_every=0 must be an integer of at least 1"):
        solve(torch.cos, torch.zeros(2, 1), loop=Eager(0))


@pytest.mark.parametrize("exponent", [-170, -200, 170, 200])
@pytest.mark.parametrize("check_every", [1, 3])
def test_norms_that_leave_float64_are_still_right(check_every, exponent):
    matrix = torch.diag(torch.tensor([0.5, 0.8, -0.3, 0.9], dtype=torch.float64))
    shift = 10.0**exponent * torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = solve(
        lambda z: z @ matrix + shift,
        torch.zeros_like(shift),
        solver=Picard(),
        rtol=1e-8,
        atol=0.0,
        max_steps=300,
        loop=Eager(check_every),
    ).check()
    exact = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - matrix, shift / 10.0**exponent, left=False)
    torch.testing.assert_close(solution.value / 10.0**exponent, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the rows depend on each other:RuntimeWarning")
@pytest.mark.parametrize("check_every", [1, 3, 10])
@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden(), NewtonKrylov()], ids=repr)
def test_rows_that_see_each_other_converge_together_or_not_at_all(solver, check_every):
    rate = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)[:, None]
    shift = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def coupled(z):
        return 0.3 * rate * torch.cos(z) + 0.5 * z.mean(0, keepdim=True) + shift

    start = torch.zeros(8, 5, dtype=torch.float64)
    solution = solve(coupled, start, solver=solver, rtol=1e-6, atol=0.0, loop=Eager(check_every), max_steps=400)
    image = coupled(solution.value)
    relative = (image - solution.value).norm(dim=1) / image.norm(dim=1)
    assert (relative[solution.converged] <= 1.02e-6).all()
    assert solution.converged.all(), solution.summary()


@pytest.mark.filterwarnings("ignore:the rows depend on each other:RuntimeWarning")
@pytest.mark.parametrize("check_every", [1, 8, 16])
@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=repr)
def test_nor_are_they_told_to_have_at_the_end_of_their_budget(solver, check_every):
    linear = torch.nn.Linear(9, 9, dtype=torch.float64).requires_grad_(False)
    linear.weight.mul_(0.7 / torch.linalg.matrix_norm(linear.weight, 2))
    x = torch.randn(9, 9, dtype=torch.float64) * torch.logspace(-3, 1, 9, dtype=torch.float64)[:, None]

    def coupled(z, x):
        return torch.tanh(linear(z) + x) + 0.25 * z.mean(0, keepdim=True)

    options = {"solver": solver, "rtol": 1e-8, "atol": 0.0, "compact": False, "loop": Eager(check_every)}
    for most in range(20, 56, 3):
        solution = solve(coupled, torch.zeros_like(x), (x,), max_steps=most, **options)
        image = coupled(solution.value, x)
        relative = (image - solution.value).norm(dim=1) / image.norm(dim=1)
        assert (relative[solution.converged] <= 1.02e-8).all()


@pytest.mark.filterwarnings("ignore:the rows depend on each other:RuntimeWarning")
@pytest.mark.parametrize("check_every", [8, 40])
def test_without_steps_left_rows_that_see_each_other_keep_what_they_have_reached(check_every):
    x, weight = torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([[0.0], [0.9], [0.9]])
    solution = solve(
        lambda z, x: weight * z.roll(1, 0) + 0.5 * z + x,
        torch.zeros(3, 1),
        (x,),
        solver=Picard(),
        rtol=1e-2,
        max_steps=16,
        loop=Eager(check_every),
    )
    assert solution.converged[0]
    assert solution.value[0].item() == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("solver", [Anderson(), Broyden(memory=4)], ids=repr)
def test_a_neighbour_that_forgets_its_history_changes_no_other_row(solver):
    generator = torch.Generator().manual_seed(30)
    a = 4 * torch.rand(40, 1, generator=generator, dtype=torch.float64)
    b = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    start = 3 * torch.randn(40, 1, generator=generator, dtype=torch.float64)

    def f(z, a, b):
        return a * z * (1 - z * z / 3) + b

    options = {"solver": solver, "rtol": 1e-8, "atol": 0.0, "loop": Eager(3)}
    together = solve(f, start, (a, b), **options)
    for row in range(40):
        alone = solve(f, start[row : row + 1], (a[row : row + 1], b[row : row + 1]), **options)
        assert alone.status[0] == together.status[row]
        assert alone.evaluations[0] == together.evaluations[row]
        if alone.converged[0]:
            torch.testing.assert_close(alone.value[0], together.value[row], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loop", [Eager(2), Eager(8), Captured(8), Eager(30)], ids=repr)
@pytest.mark.parametrize("solver", [Anderson(), Broyden()], ids=repr)
def test_rows_whose_solver_leaps_recover_however_seldom_they_are_looked_at(solver, loop):
    draw = torch.Generator().manual_seed(0)
    weight = (0.5 * torch.randn(4, 4, generator=draw, dtype=torch.float64)).abs()
    shift = 0.6 * torch.rand(16, 4, generator=draw, dtype=torch.float64)

    def logarithm(z):  # which has no value where a long step leads
        return 0.9 * torch.log(z @ weight.to(z) + 1) + shift.to(z)

    start = torch.full((16, 4), 1e-2, dtype=torch.float64)
    options = {"solver": solver, "rtol": 1e-9, "max_steps": 200}
    assert solve(logarithm, start, **options).converged.all()
    found = solve(logarithm, start, loop=loop, **options).check()
    torch.testing.assert_close(logarithm(found.value), found.value, rtol=1e-7, atol=1e-7)  # one of two fixed points
    assert (found.trace.isnan().any(0) & (found.steps > 1)).any()  # some did leap


@pytest.mark.parametrize("loop", [Eager(), Eager(8)], ids=repr)
@pytest.mark.parametrize("solver", [Anderson(), Broyden()], ids=repr)
def test_rows_that_leap_are_no_reason_to_keep_those_that_have_stopped(solver, loop, recwarn):
    for seed in range(10):
        draw = torch.Generator().manual_seed(seed)
        shift = 1.5 * torch.rand(16, 1, generator=draw, dtype=torch.float64) - 0.3
        options = {"solver": solver, "loop": loop, "compact": True, "rtol": 1e-5}
        start = torch.full((16, 1), 0.1, dtype=torch.float64)
        solve(lambda z, b: torch.log(2 * z + 1) + b, start, (shift.to(torch.get_default_device()),), **options)
    assert not [str(told.message) for told in recwarn if "rows" in str(told.message)]
