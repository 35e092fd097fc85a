"""The contract of `solve`, held by every solver."""

from typing import NamedTuple

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import GMRES, Anderson, Broyden, ConvergenceError, Monotone, NewtonKrylov, Picard, Status, solve

SOLVERS = [
    Picard(),
    Picard(damping=0.7),
    Anderson(),
    Anderson(memory=5),
    Anderson(damping=0.8),
    Broyden(),
    Monotone(),
    NewtonKrylov(),
]
by_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
by_affine_solver = pytest.mark.parametrize("solver", [*SOLVERS, GMRES()], ids=repr)
ACCELERATED = pytest.mark.parametrize("solver", [Anderson(), Broyden()], ids=repr)


def contraction(dim, radius, generator_seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(generator_seed)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return (basis @ torch.diag(torch.linspace(-radius, radius, dim, dtype=torch.float64)) @ basis.T).to(dtype)


def affine(z, matrix, shift):
    return torch.einsum("bij,bj->bi", matrix, z) + shift


def recomputed(f, value, *args):
    image = f(value, *args)
    return (image - value).norm(dim=1) / image.norm(dim=1)


# --- finding the fixed point -------------------------------------------------------------------------------------


@by_affine_solver
def test_linear_problem_agrees_with_dense_algebra(solver):
    matrix, shift = contraction(16, 0.8), torch.randn(5, 16, dtype=torch.float64)
    solution = solve(
        lambda z: z @ matrix.T + shift, torch.zeros_like(shift), solver=solver, rtol=1e-10, atol=0.0, max_steps=500
    ).check()
    exact = np.linalg.solve(np.eye(16) - matrix.cpu().numpy(), shift.cpu().numpy().T).T
    np.testing.assert_allclose(solution.value.cpu().numpy(), exact, rtol=1e-8, atol=1e-8)


@by_solver
def test_nonlinear_problem_agrees_with_scipy(solver):
    # Chandrasekhar's H-equation
    count, strength = 20, 0.9
    nodes = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    kernel = strength / (2 * count) * nodes[:, None] / (nodes[:, None] + nodes)

    def f(z):
        return 1 / (1 - z @ kernel.T)

    solution = solve(f, torch.ones(1, count, dtype=torch.float64), solver=solver, rtol=1e-12, atol=0.0).check()
    reference = scipy.optimize.root(
        lambda h: f(torch.tensor(h)[None])[0].cpu().numpy() - h, np.ones(count), method="krylov", tol=1e-12
    )
    np.testing.assert_allclose(solution.value[0].cpu().numpy(), reference.x, rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    dim=st.integers(1, 12),
    batch=st.integers(1, 4),
    radius=st.floats(0.0, 0.9),
    exponent=st.integers(-8, 8),
    seed=st.integers(0, 1000),
    solver=st.sampled_from(SOLVERS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_affine_contraction_is_solved(dim, batch, radius, exponent, seed, solver, dtype):
    matrix = contraction(dim, radius, seed, dtype)
    shift = 10.0**exponent * torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def f(z):
        return z @ matrix.T + shift

    solution = solve(f, torch.zeros_like(shift), solver=solver, rtol=1e-4, atol=0.0, max_steps=400)
    assert solution.converged.all(), solution.summary()
    assert (recomputed(f, solution.value) <= 1.01e-4).all()


@by_affine_solver
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_steps_do_not_depend_on_the_problems_scale(solver, scale):
    matrix, shift = contraction(64, 0.95), torch.randn(3, 64, dtype=torch.float64)

    def steps(factor):
        return solve(
            lambda z: z @ matrix.T + factor * shift,
            torch.zeros_like(shift),
            solver=solver,
            rtol=1e-8,
            atol=0.0,
            max_steps=1000,
        ).steps

    assert torch.equal(steps(1.0), steps(scale))


def test_anderson_needs_few_evaluations_to_ten_digits():
    matrix, shift = contraction(64, 0.95), torch.randn(4, 64, dtype=torch.float64)
    solution = solve(
        lambda z: z @ matrix.T + shift,
        torch.zeros_like(shift),
        solver=Anderson(memory=10),
        rtol=1e-10,
        atol=0.0,
        max_steps=200,
    ).check()
    assert solution.evaluations.max() <= 112


# --- what a Solution says ----------------------------------------------------------------------------------------


@by_affine_solver
def test_residual_is_that_of_the_value(solver):
    matrix, shift = contraction(16, 0.99), torch.randn(6, 16, dtype=torch.float64)

    def f(z):
        return z @ matrix.T + shift

    solution = solve(f, torch.zeros_like(shift), solver=solver, rtol=1e-6, atol=0.0, max_steps=20)
    torch.testing.assert_close(solution.residual, recomputed(f, solution.value), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("solver", [*SOLVERS[:-1], GMRES()], ids=repr)  # of NewtonKrylov, see test_newton.py
def test_counts_and_trace_are_true(solver):
    matrix, shift = contraction(16, 0.9), torch.randn(3, 16, dtype=torch.float64)
    calls = []

    def f(z):
        calls.append(z.clone())
        return z @ matrix.T + shift * torch.tensor([[1.0], [1.0], [0.0]])

    start = torch.ones_like(shift)
    solution = solve(f, start, solver=solver, rtol=1e-6, atol=1e-9, max_steps=300)
    assert solution.trace.shape == (solution.steps.max(), 3)
    assert len(calls) == solution.steps.max()
    assert torch.equal(solution.steps, solution.evaluations)
    assert torch.equal(calls[0], start)
    torch.testing.assert_close(solution.trace[0], recomputed(lambda z: f(z), start))
    for row, steps in enumerate(solution.steps.tolist()):
        assert solution.trace[:steps, row].isfinite().all()
        assert solution.trace[steps:, row].isnan().all()
        assert solution.trace[steps - 1, row] == solution.residual[row]


def test_a_row_that_starts_at_its_solution_takes_one_step():
    solution = solve(lambda z: z / 2, torch.zeros(2, 3))
    assert solution.converged.all()
    assert solution.steps.tolist() == [1, 1]


def test_an_unconverged_row_keeps_its_best_iterate():
    # the residual falls for three steps, then grows
    residuals = iter([8.0, 4.0, 1.0, 16.0, 32.0, 64.0])
    solution = solve(lambda z: z + next(residuals), torch.ones(1, 1), solver=Picard(), rtol=0.0, atol=0.0, max_steps=6)
    assert solution.status.item() == Status.MAX_STEPS
    assert solution.value.item() == 1 + 8 + 4


def test_check_names_rows_causes_and_remedies():
    def f(z):
        return torch.where(torch.tensor([[True], [False], [True]]), z / 2 + 1, torch.nan)

    with pytest.raises(ConvergenceError, match=r"(?s)2 of 3 rows.*1 NON_FINITE \(row 1.*check the inputs"):
        solve(f, torch.zeros(3, 1)).check()


def test_repr_is_short():
    solution = solve(lambda z: z / 2 + 1, torch.zeros(3, 1))
    assert "3 CONVERGED" in repr(solution)
    assert len(repr(solution)) < 200
    assert repr(solve(lambda z: z, torch.zeros(0, 2))) == "Solution(0 rows)"
    assert repr(solve(lambda z: z, torch.ones(1, 2))).startswith("Solution(1 row: 1 CONVERGED; steps 1, largest")


def test_every_status_has_a_message():
    assert len({status.message for status in Status}) == len(Status)


# --- honest failure ----------------------------------------------------------------------------------------------


def cycle(z):
    return torch.stack((-z[:, 1], z[:, 0]), dim=1)


def nan_at_third_call():
    calls = iter(range(1000))
    return lambda z: z / 2 + (torch.nan if next(calls) >= 2 else 1.0)


@pytest.mark.parametrize(
    ("f", "start", "solver", "expected"),
    [
        (lambda z: z + torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2), Picard(), {"DIVERGED"}),
        (lambda z: z + torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2), Anderson(), {"DIVERGED"}),
        (lambda z: z + torch.tensor([[1.0, -2.0]]), 3 * torch.ones(1, 2), Broyden(), {"DIVERGED"}),
        (lambda z: 1.2 * z + 1, torch.zeros(1, 2), Picard(), {"DIVERGED"}),
        (cycle, torch.ones(1, 2), Picard(), {"STALLED"}),
        (lambda z: z.exp() + 1, torch.zeros(1, 2), Picard(), {"NON_FINITE", "DIVERGED"}),
        (lambda z: 3 * z + 1, torch.zeros(1, 2), Picard(), {"NON_FINITE", "DIVERGED"}),
        (nan_at_third_call(), torch.zeros(1, 2), Anderson(), {"NON_FINITE"}),
        (nan_at_third_call(), torch.zeros(1, 2), Broyden(), {"NON_FINITE"}),
    ],
)
def test_what_cannot_be_solved_says_so(f, start, solver, expected):
    solution = solve(f, start.to(torch.get_default_device()), solver=solver, max_steps=1000)
    assert Status(solution.status.item()).name in expected
    assert solution.steps.item() <= 300, "before the steps are burnt"
    assert solution.value.isfinite().all()


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=repr)
def test_a_translation_never_converges(solver):
    # ‖z‖ grows until b is lost to rounding and every relative test is met
    for _ in range(10):
        shift = torch.randn(8, 16)
        solution = solve(lambda z, b: z + b, 3 * torch.ones(8, 16), (shift,), solver=solver, max_steps=200)
        assert not solution.converged.any()


@by_affine_solver
def test_norms_that_overflow_are_no_convergence(solver):
    solution = solve(lambda z: -3 * z + 1, torch.full((1, 4), 2e30), solver=solver, max_steps=3)
    if not isinstance(solver, NewtonKrylov):  # to which an affine map is one step
        assert not solution.converged.any()
    assert (solution.value[solution.converged] - 0.25).abs().sum() < 1e-3
    assert solution.residual.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_that_leave_float32_are_still_right(scale):
    shift = scale * torch.randn(4, 8)
    solution = solve(lambda z: z / 2 + shift, torch.zeros(4, 8), solver=Picard(), rtol=1e-5, atol=0.0).check()
    torch.testing.assert_close(solution.value / scale, 2 * shift / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("solver", [Anderson(), Broyden(), Monotone(), NewtonKrylov(), GMRES()], ids=repr)
def test_acceleration_is_kept_where_squares_leave_float32(solver, scale):
    matrix, shift = contraction(16, 0.95, dtype=torch.float32), torch.randn(4, 16)

    def steps(factor):
        start = torch.zeros_like(shift)
        solution = solve(lambda z: z @ matrix.T + factor * shift, start, solver=solver, rtol=1e-5, atol=0.0).check()
        assert solution.value.dtype == torch.float32
        return solution.evaluations.max()

    assert steps(scale) <= steps(1.0) + 2


def test_warm_start_just_outside_the_tolerance_converges():
    def f(z):
        return 0.999 * z + 0.001

    # 1.0005 times the tolerance: one step meets it, but the fall is lost in float32's rounding
    distance = 0.10005 / 1.0999
    solution = solve(f, torch.full((1, 4), 1 - distance), solver=Picard(), rtol=1e-4, atol=0.0)
    assert 1e-4 < solution.trace[0] < 1.002e-4
    assert solution.converged.all(), solution.summary()


def test_a_residual_that_first_grows_is_no_divergence():
    solution = solve(lambda z: torch.tanh(2 * z + 1e-5), torch.zeros(1, 4), solver=Picard())
    assert solution.converged.all(), solution.summary()
    assert solution.value.min() > 0.9
    matrix = torch.tensor([[0.3, 1e6], [0.0, 0.3]], dtype=torch.float64)
    shift = torch.tensor([[0.0, 1e-6]], dtype=torch.float64)
    solution = solve(lambda z: z @ matrix.T + shift, torch.zeros_like(shift), rtol=1e-8)
    torch.testing.assert_close(solution.value, torch.linalg.solve(torch.eye(2) - matrix, shift.T).T, rtol=1e-6, atol=0)


@by_affine_solver
def test_a_nan_row_leaves_the_others_alone(solver):
    matrix, shift = contraction(8, 0.8), torch.randn(4, 8, dtype=torch.float64)

    def f(z, x):
        return z @ matrix.T + x

    clean = solve(f, torch.zeros_like(shift), (shift,), solver=solver, rtol=1e-8, atol=0.0, max_steps=300)
    broken = shift.clone()
    broken[2, 3] = torch.nan
    solution = solve(f, torch.zeros_like(shift), (broken,), solver=solver, rtol=1e-8, atol=0.0, max_steps=300)
    assert solution.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert torch.equal(solution.value[2], torch.zeros(8, dtype=torch.float64))
    others = [0, 1, 3]
    torch.testing.assert_close(solution.value[others], clean.value[others], rtol=1e-12, atol=1e-12)


def test_a_stopped_row_stays_stopped():
    calls = iter(range(1000))

    def f(z):
        image = z / 2 + 1
        return torch.where(torch.tensor([[next(calls) == 0], [False]]), torch.nan, image)

    solution = solve(f, torch.zeros(2, 1), solver=Picard(), rtol=1e-6)
    assert solution.status.tolist() == [Status.NON_FINITE, Status.CONVERGED]
    assert solution.value[0].item() == 0
    assert solution.trace[1:, 0].isnan().all()


# --- rows do not see each other ----------------------------------------------------------------------------------


def heterogeneous(batch=64, dim=16):
    factors = 1 - torch.logspace(-0.3, -2.2, batch, dtype=torch.float64)
    return factors[:, None, None] * contraction(dim, 1.0), torch.randn(batch, dim, dtype=torch.float64)


@by_affine_solver
@pytest.mark.parametrize("compact", [False, True])
def test_a_row_does_not_depend_on_its_batch_mates(solver, compact):
    matrix, shift = heterogeneous(64)
    options = {"solver": solver, "rtol": 1e-11, "atol": 0.0, "max_steps": 8000}
    together = solve(affine, torch.zeros_like(shift), (matrix, shift), compact=compact, **options).check()
    for rows in (slice(48, 56), *(slice(row, row + 1) for row in (0, 31, 50, 63))):
        fewer = solve(
            affine, torch.zeros_like(shift[rows]), (matrix[rows], shift[rows]), compact=compact, **options
        ).check()
        torch.testing.assert_close(together.value[rows], fewer.value, rtol=1e-9, atol=1e-9)
        assert torch.equal(together.steps[rows], fewer.steps)
        assert torch.equal(together.evaluations[rows], fewer.evaluations)


@by_affine_solver
def test_compacting_costs_little_more_than_the_rows_need(solver):
    matrix, shift = heterogeneous()
    spent = 0

    def f(z, matrix, shift):
        nonlocal spent
        spent += len(z)
        return affine(z, matrix, shift)

    solution = solve(
        f, torch.zeros_like(shift), (matrix, shift), solver=solver, rtol=1e-6, max_steps=5000, compact=True
    ).check()
    assert spent <= 1.15 * solution.evaluations.sum()


@pytest.mark.parametrize("solver", [Picard(), NewtonKrylov()], ids=repr)
def test_autocast_stays_on_in_f_when_rows_are_dropped(solver):
    seen = set()

    def f(z, rate):
        seen.add((len(z), torch.is_autocast_enabled(torch.get_default_device().type)))
        return rate * torch.tanh(z) + 1

    rate = torch.linspace(0.05, 0.9, 16)[:, None]
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        solve(f, torch.zeros(16, 4), (rate,), solver=solver, compact=True)
    assert len({rows for rows, _ in seen}) > 1
    assert all(enabled for _, enabled in seen)


def test_coupled_rows_are_caught_when_compacting():
    def f(z, factor, shift):
        return factor * z + shift + 1e-2 * z.mean(0)

    factor, shift = torch.linspace(0.1, 0.9, 16)[:, None], torch.ones(16, 1)
    with pytest.warns(RuntimeWarning, match="couples the rows|depend on each other"):
        solution = solve(f, torch.zeros(16, 1), (factor, shift), rtol=1e-5, compact=True, max_steps=300)
    assert solution.converged.all()
    assert (recomputed(f, solution.value, factor, shift) <= 1.02e-5).all()


def test_a_row_with_an_infinite_relative_residual_accuses_nobody():
    # the image of its best iterate is 0
    def f(z):
        jump = torch.where(z == 5, -20.0, torch.where(z == 0, 5.0, 0.0))
        return torch.where(z == 0.5, z, torch.where(z.abs() == 1, 0.0, jump))

    start = torch.full((16, 1), 0.5)
    start[0] = 1.0
    solution = solve(f, start, solver=Picard(), compact=True, max_steps=60)
    assert solution.status[0] != Status.CONVERGED
    assert solution.converged[1:].all()


def test_coupled_rows_converge_together_or_not_at_all():
    def f(z):
        return torch.linspace(0.1, 0.98, 16, dtype=z.dtype)[:, None] * z + 1 + 1e-2 * z.mean(0)

    start = torch.zeros(16, 1, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"the rows depend on each other.*z0\[None\]") as heard:
        solution = solve(f, start, solver=Picard(), rtol=1e-5, max_steps=2000)
    assert len(heard) == 1
    assert solution.converged.all()
    assert (recomputed(f, solution.value) <= 1.02e-5).all()


def test_closure_that_cannot_follow_dropped_rows_is_named_and_solved():
    factor = torch.linspace(0.1, 0.9, 16)[:, None]
    with pytest.warns(RuntimeWarning, match=r"compact=False.*pass tensors through args") as heard:
        solution = solve(lambda z: factor * z + 1, torch.zeros(16, 1), solver=Picard(), compact=True, max_steps=300)
    assert len(heard) == 1
    assert solution.converged.all()


# --- states ------------------------------------------------------------------------------------------------------


class Scales(NamedTuple):
    fine: torch.Tensor
    coarse: torch.Tensor


@by_solver
def test_tuple_states_have_a_joint_norm(solver):
    fine, coarse = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)

    def f(z):
        return Scales(z.fine / 2 + fine, z.coarse / 3 + coarse + z.fine.mean(dim=(1, 2))[:, None] / 4)

    start = Scales(torch.zeros_like(fine), torch.zeros_like(coarse))
    solution = solve(f, start, solver=solver, rtol=1e-10, atol=0.0, max_steps=200).check()
    assert isinstance(solution.value, Scales)
    torch.testing.assert_close(solution.value.fine, 2 * fine)
    expected = 1.5 * (coarse + 2 * fine.mean(dim=(1, 2))[:, None] / 4)
    torch.testing.assert_close(solution.value.coarse, expected)


@by_solver
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_reaches_its_floor(solver, dtype):
    shift = torch.randn(4, 8).to(dtype)

    def f(z):
        assert z.dtype == dtype
        return z / 2 + shift

    solution = solve(f, torch.zeros(4, 8, dtype=dtype), solver=solver, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    assert solution.converged.all(), solution.summary()
    assert solution.value.dtype == dtype
    torch.testing.assert_close(solution.value, 2 * shift, rtol=0.1, atol=0.1)


@ACCELERATED
def test_autocast_leaves_the_solvers_own_digits_alone(solver):
    shift = torch.randn(8, 16)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        solution = solve(lambda z: torch.sin(z / 2) + shift, torch.zeros(8, 16), solver=solver, rtol=1e-6)
    assert solution.converged.all(), solution.summary()


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (2, 0), (3, 2, 1, 2)])
def test_unusual_shapes(shape):
    solution = solve(lambda z: z / 2 + 1, torch.zeros(shape), rtol=1e-6)
    assert solution.value.shape == shape
    assert solution.status.shape == shape[:1]
    assert solution.trace.shape[1:] == shape[:1]
    torch.testing.assert_close(solution.value, torch.full(shape, 2.0), rtol=1e-4, atol=1e-4)


@by_solver
def test_arguments_are_left_alone_and_share_no_memory_with_the_value(solver):
    start, shift = torch.zeros(3, 8).T, torch.randn(8, 3)
    keep = start.clone(), shift.clone()
    for f in (lambda z, x: z / 2 + x, lambda z, x: x, lambda z, x: z):
        solution = solve(f, start, (shift,), solver=solver, rtol=1e-6)
        assert solution.converged.all()
        solution.value.fill_(7.0)
        assert torch.equal(start, keep[0])
        assert torch.equal(shift, keep[1])


# --- bad input ---------------------------------------------------------------------------------------------------

START = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: solve(3, START), TypeError, "f is a int"),
        (lambda: solve(torch.cos, [1.0]), TypeError, r"z0 is a list, \[float"),
        (lambda: solve(torch.cos, {}), TypeError, "z0 is an empty dict"),
        (lambda: solve(torch.cos, None), TypeError, "z0 is None"),
        (lambda: solve(torch.cos, (START, None)), TypeError, r"z0 is a tuple, \(\(4, 3\), NoneType\)"),
        (lambda: solve(torch.cos, torch.tensor(0.5)), ValueError, r"dim 0 is the batch.*z0\[None\]"),
        (lambda: solve(torch.cos, torch.zeros(4)), ValueError, r"z0 has shape \(4,\).*z0\[:, None\]"),
        (lambda: solve(torch.cos, torch.zeros(4, 3, dtype=torch.int64)), TypeError, "dtype torch.int64"),
        (lambda: solve(torch.cos, (START, torch.zeros(5, 3))), ValueError, "differ in batch"),
        (lambda: solve(torch.cos, START, START), TypeError, "args is a Tensor: pass a tuple"),
        (lambda: solve(torch.cos, START, solver="anderson"), TypeError, r"solver='anderson'.*Anderson\(\)"),
        (lambda: solve(torch.cos, START, rtol=-1.0), ValueError, r"rtol=-1.0 .*at least 0"),
        (lambda: solve(torch.cos, START, atol=float("nan")), ValueError, "atol=nan"),
        (lambda: solve(torch.cos, START, rtol=True), ValueError, "rtol=True"),
        (lambda: solve(torch.cos, START, max_steps=0), ValueError, "max_steps=0 .*at least 1"),
        (lambda: solve(torch.cos, START, f_solver=Picard()), TypeError, "f_solver"),
        (lambda: solve(lambda z: z[:, :2], START), ValueError, r"\(4, 3\) to one of shape \(4, 2\)"),
        (lambda: solve(lambda z: z.double(), START), TypeError, "dtype torch.float32"),
        (lambda: solve(lambda z: None, START), TypeError, r"of shape \(4, 3\) to None: return"),
        (lambda: solve(lambda z: (z[0], None), (START, START)), TypeError, r"a tuple, \(\(4, 3\), NoneType\): return"),
        (lambda: solve(lambda z: z.mul_(0.5), START), ValueError, "writes into its argument"),
        (lambda: Anderson(memory=0), ValueError, "memory=0 must be an integer of at least 1"),
        (lambda: Anderson(damping=float("nan")), ValueError, "damping=nan"),
        (lambda: Anderson(ridge=-1e-3), ValueError, "ridge=-0.001"),
        (lambda: Anderson(ridge="x"), ValueError, "ridge='x' must be a finite number"),
        (lambda: solve(torch.cos, START, compact="no"), TypeError, "compact='no' must be True, False or None"),
        (lambda: solve(torch.cos, START, max_steps=2.5), ValueError, "max_steps=2.5"),
        (lambda: solve(torch.cos, START, max_steps=torch.tensor([3, 0, 1, 2])), ValueError, "at least 1"),
        (lambda: solve(torch.cos, START, max_steps=torch.ones(3, dtype=torch.long)), ValueError, "batch of 4"),
        (lambda: solve(torch.cos, START, min_steps=-1), ValueError, "min_steps=-1"),
        (lambda: solve(torch.cos, START, min_steps=6, max_steps=4), ValueError, "min_steps=6 exceeds max_steps=4"),
        (
            lambda: solve(torch.cos, START, min_steps=4, max_steps=torch.tensor([3, 2, 3, 3])),
            ValueError,
            "exceeds max_steps=3",
        ),
        (lambda: solve(torch.cos, START, norm="max"), TypeError, r"norm='max'.*Entrywise\(\)"),
        (lambda: solve(torch.cos, START, loop=3), TypeError, r"loop=3.*Eager\(\)"),
        (lambda: solve(torch.cos, START, tol=1e-3), TypeError, r"^solve\(\) got .*'tol': it takes solver, rtol"),
        (lambda: Picard(damping=0), ValueError, r"damping=0 .*\(0, 2\]"),
        (lambda: Broyden(memory=2.5), ValueError, "memory=2.5"),
        (lambda: GMRES(restart=0), ValueError, "restart=0 must be an integer of at least 1"),
        (lambda: NewtonKrylov(inner_steps=-1), ValueError, "inner_steps=-1"),
        (lambda: Monotone(memory=True), ValueError, "memory=True"),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_numpy_numbers_are_numbers():
    assert solve(torch.cos, START, rtol=np.float32(1e-3), max_steps=np.int64(50)).converged.all()


@pytest.mark.parametrize("inference", [False, True])
def test_z0_survives_an_f_that_writes_into_it(inference):
    with torch.inference_mode(inference):
        start = torch.ones(2, 3)
        with pytest.raises(ValueError, match="writes into its argument"):
            solve(lambda z: z.mul_(0.5).add_(1), start, solver=Picard(), rtol=1e-6)
        assert torch.equal(start, torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@by_affine_solver
def test_a_nan_row_changes_no_bit_of_the_others(solver, dtype):
    generator = torch.Generator().manual_seed(0)
    matrix = (0.7 * torch.randn(6, 8, 8, generator=generator) / 8**0.5).to(dtype)
    shift = torch.randn(6, 8, generator=generator).to(dtype)
    broken = shift.clone()
    broken[2] = torch.nan
    options = {"solver": solver, "rtol": 1e-2 if dtype == torch.bfloat16 else 1e-5, "max_steps": 200}
    clean, found = (solve(affine, torch.zeros_like(shift), (matrix, x), **options) for x in (shift, broken))
    others = [0, 1, 3, 4, 5]
    for part in ("value", "residual", "steps", "evaluations", "status"):
        assert torch.equal(getattr(clean, part)[others], getattr(found, part)[others]), part


def test_an_f_that_overwrites_its_last_output_is_refused():
    buffer = torch.zeros(4, 3)

    def f(z):
        return buffer.copy_(z / 2 + 1)

    with pytest.raises(ValueError, match="clone a static output"):
        solve(f, torch.zeros(4, 3))


def test_a_slow_contraction_in_half_precision_is_not_given_up():
    x = torch.randn(2, 4096).bfloat16()  # many entries: the residual falls evenly

    def f(z):
        return (0.975 * z.float() + x.float()).bfloat16()

    solution = solve(f, torch.zeros_like(x), solver=Picard(), rtol=1.8e-2)
    assert solution.converged.all(), solution


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compact", [False, True])
def test_the_floor_of_autocast_is_a_stall(dtype, compact):
    weight = torch.randn(16, 16)
    weight *= 0.8 / torch.linalg.matrix_norm(weight, 2)
    x = torch.randn(64, 16)
    with torch.autocast(torch.get_default_device().type, dtype=dtype):
        solution = solve(lambda z, x: torch.tanh(z @ weight + x), torch.zeros_like(x), (x,), rtol=1e-7, compact=compact)
    assert solution.residual.max() < 4 * torch.finfo(dtype).eps
    assert (solution.status == Status.STALLED).any()
    assert Status.DIVERGED not in solution.status.tolist()
