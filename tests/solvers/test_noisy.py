"""Noise that fades in every step, against a loop written out."""

import pytest
import torch

from solvers import Captured, Compiled, NoisyPicard, Status, solve


def f(z, x):
    return 0.6 * torch.tanh(z) + x


@pytest.fixture
def x():
    return torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def iterates(x, solver, steps):
    """By hand."""
    z, found = torch.zeros_like(x), []
    for step in range(steps):
        found.append(z)
        generator = torch.Generator().manual_seed(1_000_003 * solver.seed + step)
        noise = torch.randn(1, 5, generator=generator, dtype=torch.float64)
        z = (1 - solver.damping) * z + solver.damping * f(z, x) + solver.noise * solver.decay**step * noise
    return found


def relative(z, x):
    return (f(z, x) - z).norm(dim=1) / f(z, x).norm(dim=1)


@pytest.mark.parametrize(
    "solver", [NoisyPicard(), NoisyPicard(0.5, 0.7, damping=0.6, seed=4), NoisyPicard(noise=0)], ids=repr
)
def test_residuals_are_those_of_f_along_the_noisy_iterates(x, solver):
    solution = solve(f, torch.zeros_like(x), (x,), solver=solver, rtol=1e-8, max_steps=200).check()
    expected = iterates(x, solver, int(solution.steps.min()))
    for found, z in zip(solution.trace, expected):
        torch.testing.assert_close(found, relative(z, x))
    torch.testing.assert_close(relative(solution.value, x), solution.residual, rtol=1e-4, atol=1e-12)
    exact = solve(f, torch.zeros_like(x), (x,), rtol=1e-10).check().value
    torch.testing.assert_close(solution.value, exact, rtol=0, atol=1e-6)


def test_noise_delays_and_another_seed_is_other_noise(x):
    def steps(solver):
        return solve(f, torch.zeros_like(x), (x,), solver=solver, rtol=1e-6).steps

    assert (steps(NoisyPicard(noise=1.0, decay=0.9)) > steps(NoisyPicard(noise=0))).all()
    first, again, other = (
        solve(f, torch.zeros_like(x), (x,), solver=NoisyPicard(seed=seed)).trace[2] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("compact", [False, True])
def test_a_row_is_solved_as_it_would_be_alone(x, compact):
    x[0] = 0  # a row that the others outlast
    together = solve(f, torch.zeros_like(x), (x,), solver=NoisyPicard(), compact=compact)
    for row in range(4):
        alone = solve(f, torch.zeros_like(x[:1]), (x[row : row + 1],), solver=NoisyPicard())
        torch.testing.assert_close(alone.value[0], together.value[row])
        assert alone.steps[0] == together.steps[row]


def test_noise_that_stays_is_no_fault_of_f_and_nothing_converges_below_it(x):
    solver = NoisyPicard(noise=0.1, decay=1)
    solution = solve(f, torch.zeros_like(x), (x,), solver=solver, rtol=1e-6, max_steps=150)
    assert (solution.status == Status.MAX_STEPS).all()
    assert bool((solution.trace[50:] > 1e-3).all())
    assert solve(f, torch.zeros_like(x), (x,), solver=solver, rtol=0.5, max_steps=150).converged.all()


def test_a_start_that_is_the_solution_stays(x):
    exact = solve(f, torch.zeros_like(x), (x,), rtol=1e-10).check().value
    solution = solve(f, exact, (x,), solver=NoisyPicard(noise=10.0))
    assert torch.equal(solution.value, exact)
    assert (solution.steps == 1).all()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"noise": -1}, "noise=-1"),
        ({"noise": float("nan")}, "noise=nan"),
        ({"decay": 0}, "decay=0"),
        ({"decay": 1.5}, "decay=1.5"),
        ({"damping": 3}, "damping=3"),
        ({"seed": 0.5}, "seed=0.5"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, why):
    with pytest.raises(ValueError, match=why):
        NoisyPicard(**arguments)


@pytest.mark.parametrize("loop", [Compiled(4), Captured(4)], ids=repr)
def test_loops_that_would_record_the_numbers_are_refused(x, loop):
    with pytest.raises(ValueError, match="NoisyPicard"):
        solve(f, torch.zeros_like(x), (x,), solver=NoisyPicard(), loop=loop)


def test_any_seed_will_do():
    found = [
        solve(torch.cos, torch.zeros(2, 3), solver=NoisyPicard(seed=seed), max_steps=4).value
        for seed in (2**62, 2**63 + 1)
    ]
    assert not torch.equal(*found)
