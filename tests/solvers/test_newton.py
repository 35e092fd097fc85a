"""NewtonKrylov: quadratic convergence, honest counts, and f that cannot be differentiated every way."""

import gc
import weakref

import numpy as np
import pytest
import scipy.optimize
import torch

from solvers import NewtonKrylov, Status, root, solve
from solvers.problem import prepare
from solvers.root_problem import RootProblem
from solvers.rules.first_way import first_way
from solvers.rules.jacobian_products import WAYS, double_reverse_mode, finite_differences, forward_mode


def cell(dim=10, gain=0.8):
    generator = torch.Generator().manual_seed(0)
    matrix = gain * torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    shift = torch.randn(dim, generator=generator, dtype=torch.float64)
    return lambda z: torch.tanh(z @ matrix.T + shift)


class TwiceReverse(torch.autograd.Function):
    """tanh, without forward mode."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad / ctx.saved_tensors[0].cosh() ** 2


class Opaque(TwiceReverse):
    """tanh, which only knows its first reverse derivative."""

    backward = staticmethod(torch.autograd.function.once_differentiable(TwiceReverse.backward))


class Forward(torch.autograd.Function):
    """tanh, without a second reverse derivative."""

    @staticmethod
    def forward(z):
        return z.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0] ** 2)

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * (1 - ctx.saved_tensors[0] ** 2)


class Unseen(Forward):
    """tanh, whose backward autograd sees a small part of."""

    @staticmethod
    def backward(ctx, grad):
        return (0.1 * grad + 0.9 * grad.detach()) * (1 - ctx.saved_tensors[0] ** 2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_products_are_those_of_the_dense_jacobian(way):
    f, z, v = cell(), torch.randn(1, 10, dtype=torch.float64), torch.randn(1, 10, dtype=torch.float64)
    dense = torch.autograd.functional.jacobian(lambda x: f(x[None])[0], z[0])
    found = way(f, z, f(z), 1e-8)(v)
    torch.testing.assert_close(found[0], dense @ v[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "way"),
    [
        (torch.tanh, double_reverse_mode),
        (TwiceReverse.apply, double_reverse_mode),
        (Forward.apply, forward_mode),
        (Unseen.apply, forward_mode),
        (Opaque.apply, finite_differences),
    ],
)
def test_each_f_is_differentiated_the_best_way_it_allows(activation, way):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(10, 10, generator=generator, dtype=torch.float64) / 5
    z = torch.randn(2, 10, generator=generator, dtype=torch.float64)

    def f(z):
        return activation(z @ matrix.T + 1)

    assert WAYS[first_way(prepare(f, z, ()), f, z, f(z), z)[0]] is way
    solution = solve(f, torch.zeros_like(z), solver=NewtonKrylov(), rtol=1e-11, atol=0.0).check()
    reference = scipy.optimize.root(lambda x: f(torch.tensor(x)[None])[0].cpu().numpy() - x, np.zeros(10), tol=1e-12)
    np.testing.assert_allclose(solution.value[0].cpu().numpy(), reference.x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("activation", [torch.tanh, Forward.apply, Opaque.apply])
def test_every_call_of_f_is_counted(activation):
    generator = torch.Generator().manual_seed(0)
    matrix, calls = torch.randn(10, 10, generator=generator, dtype=torch.float64) / 5, 0

    def counted(z):
        nonlocal calls
        calls += 1
        return activation(z @ matrix.T + 1)

    start = torch.zeros(1, 10, dtype=torch.float64)
    solution = solve(counted, start, solver=NewtonKrylov(), rtol=1e-10, atol=0.0).check()
    evaluations = solution.evaluations.item()
    # products by reverse mode are counted, too, though they do not call f again
    assert evaluations > calls if activation == torch.tanh else evaluations == calls
    assert solution.steps.item() < calls


def test_it_converges_superlinearly():
    solution = solve(cell(), torch.zeros(1, 10, dtype=torch.float64), solver=NewtonKrylov(), rtol=1e-13, atol=0.0)
    assert solution.steps.item() <= 8
    last = solution.trace[:, 0].log10().diff()[-2:]
    assert last.min() < -2, "several digits a step at the end"


def test_a_step_that_overshoots_is_halved():
    # Newton's method on arctan diverges from |z| > 1.39
    solution = solve(lambda z: z - torch.arctan(z), torch.full((1, 1), 5.0), solver=NewtonKrylov(), atol=1e-6)
    assert solution.converged.all(), solution.summary()
    assert solution.value.abs().item() < 1e-5


def test_rows_that_differ_are_each_solved():
    start = torch.tensor([[0.1], [5.0], [-40.0], [0.0]], dtype=torch.float64)
    solution = solve(lambda z: z - torch.arctan(z), start, solver=NewtonKrylov(), atol=1e-9, compact=True)
    assert solution.converged.all(), solution.summary()
    assert solution.evaluations[3] == 1


def test_it_says_when_there_is_no_fixed_point():
    solution = solve(lambda z: z.exp() + 1, torch.zeros(2, 3), solver=NewtonKrylov())
    assert not solution.converged.any()
    assert set(solution.status.tolist()) <= {Status.STALLED, Status.DIVERGED, Status.NON_FINITE, Status.MAX_STEPS}


def test_it_must_be_run_by_solve():
    z = torch.zeros(1, 2)
    with pytest.raises(RuntimeError, match="run it through solve"):
        NewtonKrylov().step(NewtonKrylov().init(z), z, z + 1, z + 1)


def test_an_f_that_hides_its_derivative_is_noticed():
    f, plain = cell(gain=1.2), torch.zeros(3, 10, dtype=torch.float64) + torch.linspace(0, 1, 3)[:, None]

    def hiding(z):
        return f(z.detach())

    seen, hidden = (solve(g, plain, solver=NewtonKrylov(), rtol=1e-9, atol=0.0).check() for g in (f, hiding))
    torch.testing.assert_close(hidden.value, seen.value, rtol=1e-7, atol=1e-7)
    assert hidden.steps.max() <= seen.steps.max() + 2


@pytest.mark.parametrize("activation", [TwiceReverse.apply, Opaque.apply])
def test_the_way_is_found_after_rows_were_dropped_too(activation):
    # the first row is solved at the start, so that the first step already runs without it
    x = torch.linspace(0, 1, 4, dtype=torch.float64)[:, None].expand(4, 3)
    solution = solve(
        lambda z, x: activation(z / 2 + x), torch.zeros_like(x), (x,), solver=NewtonKrylov(), rtol=1e-9, compact=True
    ).check()
    torch.testing.assert_close(torch.tanh(solution.value / 2 + x), solution.value, rtol=1e-8, atol=1e-8)


def test_a_closure_that_cannot_follow_dropped_rows_is_named_and_solved():
    x = torch.linspace(0, 1, 4, dtype=torch.float64)[:, None].expand(4, 3)
    with pytest.warns(RuntimeWarning, match=r"compact=False.*pass tensors through args") as heard:
        solution = solve(lambda z: torch.tanh(z / 2 + x), torch.zeros_like(x), solver=NewtonKrylov(), compact=True)
    assert len(heard) == 1
    assert solution.converged.all()


def test_running_out_of_memory_is_no_missing_derivative():
    calls = iter(range(100))

    def f(z):
        if next(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return torch.tanh(z) / 2 + 1

    with pytest.raises(torch.OutOfMemoryError):
        solve(f, torch.zeros(2, 3), solver=NewtonKrylov())


def test_a_critical_point_is_no_hidden_derivative():
    # the derivative vanishes at the start; with finite differences the tiny scale would be out of reach
    scale = 1e-12

    def f(z):
        return 3 * scale * torch.cos(z / scale)

    together = solve(
        f, torch.tensor([[0.0], [scale]], dtype=torch.float64), solver=NewtonKrylov(), rtol=1e-10, atol=0.0
    )
    alone = solve(f, torch.zeros(1, 1, dtype=torch.float64), solver=NewtonKrylov(), rtol=1e-10, atol=0.0)
    assert alone.converged.all()
    assert alone.evaluations[0] == together.evaluations[0]
    assert torch.equal(alone.value[0], together.value[0])


class InNumPy(torch.autograd.Function):
    """z A, as code outside of PyTorch is usually wrapped."""

    @staticmethod
    def forward(ctx, z, matrix):
        ctx.matrix = matrix
        return torch.from_numpy(z.detach().numpy() @ matrix.numpy())

    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(grad.detach().numpy() @ ctx.matrix.numpy().T), None


@pytest.mark.parametrize("device", ["cpu"])  # for NumPy
@pytest.mark.parametrize("part", [InNumPy.apply, lambda z, matrix: z.detach() @ matrix])
@pytest.mark.parametrize("mate", [None, 0.0, float("nan")])
def test_a_derivative_that_is_partly_hidden_is_found_out_whatever_the_other_rows_say(part, mate):
    matrix, shift = 2 * torch.randn(10, 10, dtype=torch.float64), torch.randn(5, 10, dtype=torch.float64)
    more = shift[:0] if mate is None else mate * shift[:1]  # a padded row, a row that is not finite
    x = torch.cat((shift, more))

    def equation(z, x):
        return 0.1 * z + part(z, matrix) + torch.tanh(z) - x

    solution = root(equation, torch.zeros_like(x), (x,))
    assert solution.converged[:5].all(), solution.summary()
    assert equation(solution.value, x)[:5].norm() < 1e-4


def test_a_derivative_that_is_not_finite_at_the_start_is_none():
    matrix = 3 * torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q
    x = torch.randn(5, 10, dtype=torch.float64)

    def f(z, x):
        return -z @ matrix + x * (1 + 0.3 * z.square().sum(1, keepdim=True).sqrt())

    solve(f, torch.zeros_like(x), (x,), solver=NewtonKrylov(), rtol=1e-8).check()


def refusing(z):
    assert not z.requires_grad
    return torch.tanh(z / 2 + 1)


@pytest.mark.parametrize("device", ["cpu"])  # for NumPy
@pytest.mark.parametrize("f", [refusing, lambda z: torch.from_dlpack(np.tanh(np.from_dlpack(z) / 2 + 1))])
def test_a_map_that_refuses_to_be_tracked_is_solved(f):
    start = torch.zeros(2, 10, dtype=torch.float64)
    solution = solve(f, start, solver=NewtonKrylov(), rtol=1e-8).check()
    torch.testing.assert_close(solution.value, torch.tanh(solution.value / 2 + 1), rtol=1e-7, atol=1e-7)


def test_products_do_not_walk_through_what_the_arguments_were_computed_from():
    above, seen = 2 * torch.ones(2, 3, dtype=torch.float64, requires_grad=True), []

    def f(z, x):
        seen.append((z.requires_grad, x.requires_grad))
        return torch.tanh(z / 2 + x)

    with torch.no_grad():
        solve(f, torch.zeros_like(above), (above,), solver=NewtonKrylov()).check()
    assert (True, False) in seen
    assert (True, True) not in seen


def test_products_leave_no_graphs_behind(device):
    """An output that its own graph saves, as tanh's, must not keep itself alive, where no garbage collector sees it."""
    shift, outputs = torch.randn(3, 4, device=device), []

    def F(z):
        image = torch.tanh(z)
        outputs.append(weakref.ref(image))
        return z + 0.3 * image - shift

    assert root(F, torch.zeros_like(shift)).converged.all()
    gc.collect()
    assert [output() for output in outputs] == [None] * len(outputs)


@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.float32, 2.0**-20), (torch.float32, 2.0**-40), (torch.float64, 2.0**-40)]
)
def test_a_root_takes_as_many_steps_in_any_unit(dtype, unit):
    draw = torch.Generator().manual_seed(0)
    matrix = 3 * torch.randn(8, 8, generator=draw, dtype=torch.float64)
    image = (torch.rand(6, 8, generator=draw, dtype=torch.float64) + 0.5) @ matrix.T

    def found(unit):
        def bent(z):
            u = z / unit
            return unit * ((u + torch.sqrt(u**2 + 1)) @ matrix.to(z).T - image.to(z))

        return root(bent, torch.zeros(6, 8, dtype=dtype), solver=NewtonKrylov(), atol=0.0, rtol=1e-5).check()

    one, other = found(1.0), found(unit)
    assert torch.equal(other.steps, one.steps)
    assert (other.evaluations <= one.evaluations + 3).all()  # some shorter finite differences
    torch.testing.assert_close(other.value / unit, one.value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize(
    ("dtype", "rtol", "unit"),
    [(torch.float32, 1e-4, unit) for unit in (1.0, 1e4, 3e4, 1e9)]
    + [(torch.float64, 1e-9, unit) for unit in (1.0, 1e6, 1e9, 3e9, 1e12)],
)
def test_a_start_at_zero_below_a_large_image_takes_as_many_steps(dtype, rtol, unit, opaque):
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    matrix = 3 * matrix / torch.linalg.matrix_norm(matrix, 2)
    shift = torch.randn(5, 6, generator=draw, dtype=torch.float64)
    activation = Opaque.apply if opaque else torch.tanh

    def found(unit):
        def f(z):
            return unit * activation(z @ matrix.to(z).T / unit) + unit * shift.to(z)

        return solve(f, torch.zeros(5, 6, dtype=dtype), solver=NewtonKrylov(), rtol=rtol, atol=0.0).check()

    one, other = found(1.0), found(unit)
    assert int((other.steps - one.steps).abs().max()) <= (4 if opaque else 1)
    torch.testing.assert_close(other.value / unit, one.value, rtol=100 * rtol, atol=100 * rtol)


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e-8])
def test_a_derivative_that_is_hidden_is_found_in_small_units_too(unit):
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, generator=draw, dtype=torch.float64) / 3

    def f(z):
        return unit * torch.tanh(z.detach() / unit @ matrix.to(z) + 0.3) + 0 * z

    z = torch.zeros(3, 6, dtype=torch.float64)
    assert WAYS[first_way(prepare(f, z, ()), f, z, f(z), f(z) - z)[0]] is finite_differences
    assert solve(f, z, solver=NewtonKrylov(), rtol=1e-6, atol=0.0).converged.all()


@pytest.mark.parametrize(
    ("unit", "of_image"),
    [
        (1e5, 1e-1),
        (1e5, 1e-3),
        (1e5, 1e-5),
        (1.0, 1e8),
        (1e-3, 1e5),
        (1e-5, 1e5),
        (1e-7, 1e6),
        (2e-5, 0.9),
        (1e-8, 0.04),
    ],
)
def test_a_root_is_found_whatever_the_units_of_state_and_image(unit, of_image):
    draw = torch.Generator().manual_seed(0)
    matrix = torch.eye(4, dtype=torch.float64) + 0.3 * torch.randn(4, 4, generator=draw, dtype=torch.float64)
    y = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    shift = (y + 0.3 * y.sin()) @ matrix.T

    def bent(z):
        u = z / unit
        return of_image * ((u + 0.3 * u.sin()) @ matrix.to(z).T - shift.to(z))

    z = torch.zeros(3, 4)
    problem = prepare(bent, z, (), RootProblem)
    image = problem.residual(z)
    assert WAYS[first_way(problem, problem.residual, z, image, image).position] is double_reverse_mode
    found = root(bent, z, solver=NewtonKrylov(), rtol=1e-4, atol=0.0).check()
    torch.testing.assert_close(found.value.double() / unit, y, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("dtype", "decades"), [(torch.float32, 3), (torch.float64, 5), (torch.float64, 7)])
def test_entries_in_units_of_their_own_do_not_contradict_their_derivative(dtype, decades):
    draw = torch.Generator().manual_seed(0)
    matrix = torch.eye(8) + 0.07 * torch.randn(8, 8, generator=draw)
    unit, x = torch.logspace(-decades, decades, 8, dtype=dtype), torch.randn(4, 8, generator=draw).to(dtype)

    def bent(z):  # a step that the large entries notice saturates the small ones
        return (z / unit) @ matrix.to(z).T + 0.3 * torch.tanh(2 * z / unit) - x

    z = 0.1 * unit.expand(4, 8)
    problem = prepare(bent, z, (), RootProblem)
    image = problem.residual(z)
    assert WAYS[first_way(problem, problem.residual, z, image, image).position] is double_reverse_mode


class Wrong(torch.autograd.Function):
    """y + 0.3 sin(y), with a backward of 0.4."""

    @staticmethod
    def forward(ctx, y):
        return y + 0.3 * y.sin()

    @staticmethod
    def backward(ctx, grad):
        return 0.4 * grad


@pytest.mark.parametrize("unit", [1.0, 1e-2, 1e-3, 1e-6, 1e-9])
def test_a_wrong_backward_is_noticed_in_any_unit_of_a_root(unit):
    z, shift = torch.zeros(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    found = root(lambda z: unit * (Wrong.apply(z) - shift), z, solver=NewtonKrylov(), atol=0.0, rtol=1e-9).check()
    assert found.steps.max() <= 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kinked", ["some rows", "all rows, at the start"])
def test_kinks_contradict_no_derivative(kinked, dtype):
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        matrix = (torch.randn(32, 32, generator=draw) / 32**0.5).to(dtype)
        x = torch.randn(4096, 32, generator=draw).to(dtype)
        if kinked == "some rows":
            z = torch.randn(4096, 32, generator=draw).to(dtype)

            def f(z, matrix=matrix, x=x):
                return torch.relu(z @ matrix + x)

        else:
            z = torch.zeros(4096, 32, dtype=dtype)

            def f(z, matrix=matrix, x=x):
                return torch.relu(z) @ matrix + x

        way = first_way(prepare(f, z, ()), f, z, f(z), f(z) - z)
        assert WAYS[way.position] is double_reverse_mode


def test_kinks_at_the_start_of_many_narrow_rows_contradict_no_derivative():
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        matrix = 0.5 * torch.linalg.qr(torch.randn(2, 2, generator=draw, dtype=torch.float64)).Q
        matrix = matrix @ torch.diag(torch.tensor([1.0, 0.05]).to(matrix))
        shift = torch.randn(2000, 2, generator=draw, dtype=torch.float64)
        problem = prepare(
            lambda z, matrix=matrix, shift=shift: z + torch.nn.functional.leaky_relu(z, 0.1) @ matrix - shift,
            torch.zeros_like(shift),
            (),
            RootProblem,
        )
        z = torch.zeros_like(shift)
        image = problem.residual(z)
        assert WAYS[first_way(problem, problem.residual, z, image, image).position] is double_reverse_mode


@pytest.mark.parametrize("opaque", [False, True])
def test_rows_without_a_solution_leave_the_others_alone(opaque):
    c = torch.tensor([[0.3], [0.4], [0.1], [0.05], [-0.1]], dtype=torch.float64)
    unit = 100.0

    def f(z):
        if opaque:
            return torch.from_numpy(unit * (np.square(z.detach().cpu().numpy() / unit) + c.cpu().numpy())).to(z)
        return unit * ((z / unit) ** 2 + c)

    z0 = unit * torch.tensor([[0.3], [2.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        found = solve(f, z0, solver=NewtonKrylov(), rtol=1e-8)
    assert found.status.tolist() == [Status.DIVERGED] * 2 + [Status.CONVERGED] * 3
    torch.testing.assert_close(found.value[2:] / unit, 0.5 - (0.25 - c[2:]).sqrt(), rtol=1e-7, atol=1e-7)


SATURATING = {
    "arc tangent": torch.atan,
    "hyperbolic tangent": lambda z: z.tanh() + 0.001 * z - 0.3,
    "a soft sign": lambda z: z / (1 + z.abs()) - 0.1,
    "a soft step": lambda z: z / torch.hypot(z, torch.ones_like(z)),
}


@pytest.mark.parametrize("F", SATURATING.values(), ids=SATURATING)
@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_roots_are_found_from_where_full_steps_lead_ever_further_away(F, unit):
    z = torch.linspace(-15, 15, 60, dtype=torch.float64)[:, None]
    solution = root(lambda z: unit * F(z), z, solver=NewtonKrylov(), rtol=1e-8, atol=0.0, max_steps=200)
    assert int(solution.converged.sum()) >= 54
    wanted = scipy.optimize.brentq(lambda z: float(F(torch.tensor(z, dtype=torch.float64))), -50, 50)
    found = solution.value[solution.converged]
    torch.testing.assert_close(found, torch.full_like(found, wanted), rtol=1e-5, atol=1e-6)


NO_ROOT = {
    "cosh": lambda z: torch.stack((z[:, 0].cosh() - z[:, 1], z[:, 1] + 1), 1),
    "z⁸ + 1": lambda z: z**8 + 1,
    "exp z − z": lambda z: z.exp() - z,
    "polynomials": lambda z: torch.stack((z[:, 0] ** 2 + 1 + z[:, 1] ** 4, z[:, 1] ** 7 - z[:, 0]), 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("F", NO_ROOT.values(), ids=NO_ROOT)
def test_points_that_the_solver_tried_itself_decide_no_status(F, dtype):
    """Without a root its steps get longer and longer, until F overflows where it tries them."""
    torch.manual_seed(0)
    z0 = 2 * torch.randn(64, 2, dtype=torch.float64)
    solution = root(F, z0.to(dtype), solver=NewtonKrylov(), rtol=1e-8, max_steps=200)
    assert set(solution.status.tolist()) == {Status.STALLED}
    assert solution.residual.isfinite().all()
