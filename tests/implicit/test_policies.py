"""What the gradient policies beside the exact one promise."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from implicit import (
    AdjointGradient,
    ConvergenceWarning,
    Equilibrium,
    Gradient,
    ImplicitGradient,
    NeumannGradient,
    PhantomGradient,
    ReversibleGradient,
    ShineGradient,
    Unconverged,
    UnrolledGradient,
    fixed_point,
    record,
)
from implicit.diagnostics import diagnose
from solvers import GMRES, Anderson, Broyden, ConvergenceError, Eager, Picard, Reversible, Shared, solve

from .cells import DIM, TIGHT, Cell, exact, inputs, tight_layer


def gradients(layer, x):
    return torch.autograd.grad(layer(x).sin().sum(), [x, *layer.cell.parameters()])


def agree(found, expected, rtol=1e-9, atol=1e-11):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


# --- the Neumann series ------------------------------------------------------------------------------------------


def test_the_neumann_series_is_the_sum_and_tends_to_the_exact_gradient():
    cell, x = Cell(), inputs(1)
    z = tight_layer(cell).solve(x).value
    jacobian = torch.autograd.functional.jacobian(lambda z: cell(z, x.detach())[0], z)[:, 0]
    g = z.cos()[0]
    u = g + jacobian.T @ g + jacobian.T @ jacobian.T @ g
    expected = torch.autograd.grad(cell(z, x), x, u[None])
    found = torch.autograd.grad(tight_layer(cell, NeumannGradient(steps=2))(x).sin().sum(), x)
    agree(found, expected)
    agree(gradients(tight_layer(cell, NeumannGradient(100)), x), gradients(tight_layer(cell), x))
    agree(gradients(tight_layer(cell, NeumannGradient(200, damping=0.5)), x), gradients(tight_layer(cell), x))


def test_a_phantom_gradient_is_a_neumann_series_with_less_memory():
    cell, x = Cell(), inputs()
    agree(gradients(tight_layer(cell, NeumannGradient(4)), x), gradients(tight_layer(cell, PhantomGradient(5)), x))

    def saved(gradient):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            tight_layer(cell, gradient)(x)
        return sum(sizes)

    assert saved(NeumannGradient(40)) == saved(NeumannGradient(2)) < saved(PhantomGradient(5))


# --- what the forward solver has learned -------------------------------------------------------------------------


def test_andersons_inverse_is_the_transpose_of_its_step():
    solver, z = Anderson(memory=3), torch.randn(4, 9, dtype=torch.float64)
    memory = solver.init(z)
    for _ in range(6):
        z, image = torch.randn_like(z), torch.randn_like(z)
        proposal, memory = solver.step(memory, z, image, image - z)
    v = torch.randn_like(z)
    left = (solver.transposed_inverse(memory, v, torch.zeros(len(v), 1)) * (image - z)).sum(1)
    torch.testing.assert_close(left, (v * (proposal - z)).sum(1))


class Linear(nn.Module):
    """`z ↦ A z + x`, symmetric: the solver's directions are those that the gradient needs."""

    def __init__(self, dim=DIM, top=0.9):
        super().__init__()
        basis = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]
        values = torch.linspace(-0.3, top, dim, dtype=torch.float64)
        self.matrix = nn.Parameter(basis @ torch.diag(values) @ basis.T)

    def forward(self, z, x):
        return z @ self.matrix + x


@pytest.mark.parametrize("compact", [False, True])
def test_the_estimate_is_exact_where_the_history_spans_the_space(compact):
    cell, x = Linear(), inputs(8)
    scale = torch.logspace(-3, 0, 8, dtype=torch.float64)[:, None]

    def found(gradient):
        layer = Equilibrium(cell, gradient=gradient, rtol=1e-10, atol=1e-6, compact=compact)
        return torch.autograd.grad(layer(scale * x).square().sum(), [x, cell.matrix])

    shine, true = found(ShineGradient()), found(exact())
    for one, other in zip(shine, true, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm()


def test_the_estimate_of_a_row_is_its_own_and_beats_jacobian_free_backpropagation():
    cell, x = Linear(40, top=0.97), torch.randn(16, 40, dtype=torch.float64, requires_grad=True)
    options = {"rtol": 1e-4, "max_steps": 200}

    def found(gradient, rows=slice(None)):
        z = Equilibrium(cell, gradient=gradient, **options)(x[rows])
        return torch.autograd.grad((z * x.detach()[rows].cos()).sum(), x)[0][rows]

    true, shine, free = found(exact()), found(ShineGradient()), found(PhantomGradient())
    torch.testing.assert_close(found(ShineGradient(), slice(3, 4)), shine[3:4], rtol=1e-6, atol=1e-8)
    assert (shine - true).norm() < 0.8 * (free - true).norm()


def test_a_backward_solve_that_starts_from_it_is_shorter_and_as_exact():
    cell, x = Linear(), inputs(8)
    spent = {}
    for reuse in (False, True):
        gradient = ImplicitGradient(solver=GMRES(), rtol=1e-6, reuse=reuse)
        layer = Equilibrium(cell, gradient=gradient, rtol=1e-10, atol=0.0)
        with record() as log:
            (found,) = torch.autograd.grad(layer(x).square().sum(), x)
        spent[reuse] = log.backward[0].solution.evaluations.sum()
    (expected,) = torch.autograd.grad(tight_layer(cell)(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert spent[True] < 0.7 * spent[False]


def test_a_solver_without_a_history_is_refused():
    for gradient in (ShineGradient(), ImplicitGradient(reuse=True)):
        with pytest.raises(TypeError, match=r"Broyden learns none.*Anderson\(\)"):
            Equilibrium(Cell(), solver=Broyden(), gradient=gradient)


# --- the reversible iteration ------------------------------------------------------------------------------------


def two_step(cell, x, start, steps, damping):
    """`z_{k+1} = (1 − damping) z_{k−1} + damping f(z_k)`, the textbook way; the iterates."""
    before = z = start
    iterates = [z]
    for _ in range(steps - 1):
        before, z = z, (1 - damping) * before + damping * cell(z, x)
        iterates.append(z)
    return iterates


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_the_reversible_gradient_is_that_of_the_iteration(steps):
    cell, x = Cell(), inputs()
    start = torch.randn(3, DIM, dtype=torch.float64, requires_grad=True)
    layer = tight_layer(cell, ReversibleGradient(), solver=Reversible(0.4), max_steps=steps)
    targets = [x, start, *cell.parameters()]
    with pytest.warns(ConvergenceWarning):
        value = layer(x, z0=start)
    plain = two_step(cell, x, start, steps, 0.4)[-1]
    torch.testing.assert_close(value, plain)
    found, expected = (
        torch.autograd.grad(z.sin().sum(), targets, allow_unused=True, materialize_grads=True) for z in (value, plain)
    )
    agree(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"compact": False}, {"compact": False, "loop": Eager(3)}])
def test_rows_that_stopped_at_different_steps_are_undone_each_on_its_own(options):
    cell, x = Cell(), inputs(8)
    start = torch.zeros(8, DIM, dtype=torch.float64)
    start[4:] = Equilibrium(cell, **TIGHT).solve(x).value[4:] + torch.logspace(-7, -1, 4)[:, None]
    layer = Equilibrium(cell, solver=Reversible(), gradient=ReversibleGradient(), rtol=1e-5, **options)
    value, steps = layer(x, z0=start), layer.solve(x, z0=start).steps
    assert len(steps.unique()) > 2
    iterates = two_step(cell, x, start, int(steps.max()), 0.5)
    plain = torch.stack([iterates[step - 1][row] for row, step in enumerate(steps.tolist())])
    torch.testing.assert_close(value, plain)
    targets = [x, *cell.parameters()]
    agree(*(torch.autograd.grad(z.sin().sum(), targets) for z in (value, plain)), rtol=1e-5, atol=1e-6)


def test_the_reversible_iteration_stores_no_iterates():
    x = inputs()

    def saved(steps):
        sizes = []
        layer = tight_layer(Cell(), ReversibleGradient(), solver=Reversible(), max_steps=steps)
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t),
            pytest.warns(ConvergenceWarning),
        ):
            layer(x)
        return sum(sizes)

    assert saved(3) == saved(20)


def test_undoing_that_loses_its_digits_is_said():
    x = inputs().detach().float().requires_grad_()
    cell = Cell().float()
    cell.inner.weight.data *= 3
    layer = Equilibrium(cell, solver=Reversible(0.995), gradient=ReversibleGradient(), rtol=0.0, max_steps=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last bit may settle, or not
        z = layer(x)
    with pytest.warns(ConvergenceWarning, match="lost too many digits"):
        z.sum().backward()


@pytest.mark.parametrize("every", [1, 4, 8])
def test_undoing_is_not_said_to_be_wrong_where_the_gradient_had_decayed(every):
    torch.manual_seed(0)
    weight = 0.25 * torch.randn(5, 5, dtype=torch.float64)
    x, v = torch.randn(4, 5, dtype=torch.float64).requires_grad_(), torch.randn(4, 5, dtype=torch.float64)
    options = {"rtol": 1e-7, "max_steps": 300, "loop": Eager(every)}

    def gradient(**how):
        z = fixed_point(lambda z, x: torch.tanh(z @ weight + x), torch.zeros_like(x), (x,), **how)
        return torch.autograd.grad((z * v).sum(), x)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        found = gradient(solver=Reversible(), gradient=ReversibleGradient(), **options)
    expected = gradient(rtol=1e-12, gradient=ImplicitGradient(rtol=1e-12))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_iterates_that_undoing_has_lost_spoil_no_gradient(seed):
    """The sine of a large state is bounded, the derivative with respect to its weights is not."""
    torch.manual_seed(seed)
    weight = (1.8 * torch.rand(6, 6, dtype=torch.float64) - 0.9) / 6**0.5
    x, v = torch.randn(2, 4, 6, dtype=torch.float64)

    def gradient(**options):
        tracked = weight.clone().requires_grad_()
        z = fixed_point(lambda z, weight: torch.sin(z @ weight + x), torch.zeros_like(x), (Shared(tracked),), **options)
        return torch.autograd.grad((z * v).sum(), tracked)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        found = gradient(solver=Reversible(0.9), gradient=ReversibleGradient(), rtol=1e-14, max_steps=100)
    expected = gradient(rtol=1e-12, gradient=ImplicitGradient(rtol=1e-12))
    assert torch.linalg.vector_norm(found - expected) <= 1e-2 * torch.linalg.vector_norm(expected)


def test_undoing_a_solve_that_was_widened():
    weight = torch.tensor(0.3, requires_grad=True)
    x = (1e20 * torch.randn(3, 4, dtype=torch.float32)).requires_grad_()  # the squares of its norms overflow

    def gradient(**options):
        f = lambda z, x, weight: weight * z.roll(1, 1) + x  # noqa: E731
        z = fixed_point(f, torch.zeros_like(x), (x, Shared(weight.float())), **options)
        return torch.autograd.grad((z * 1e-20).sum(), (x, weight))

    found = gradient(rtol=1e-6, solver=Reversible(), gradient=ReversibleGradient())
    torch.testing.assert_close(found, gradient(rtol=1e-6), rtol=1e-3, atol=1e-25)


def test_what_a_reversible_iteration_cannot_do_is_refused():
    with pytest.raises(TypeError, match=r"undoes the steps of Reversible\(\), not of Anderson"):
        Equilibrium(Cell(), gradient=ReversibleGradient())
    matrix = (0.1 * torch.eye(DIM, dtype=torch.float64)).requires_grad_()
    x = inputs()
    with pytest.raises(RuntimeError, match="reversible iteration would miss what f captures: matrix"):
        fixed_point(
            lambda z, x: torch.tanh(z @ matrix + x),
            torch.zeros_like(x),
            (x,),
            solver=Reversible(),
            gradient=ReversibleGradient(),
        )
    layer = Equilibrium(Cell(), solver=Reversible(), gradient=ReversibleGradient())
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)


# --- unrolling -----------------------------------------------------------------------------------------------------


def test_checkpointed_unrolling_is_unrolling_with_less_memory():
    cell, x = Cell(), inputs()
    peak, found = [], []
    for checkpoint in (False, True):
        layer = tight_layer(cell, UnrolledGradient(64, checkpoint=checkpoint))
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            z = layer(x)
        peak.append(sum(sizes))
        found.append(torch.autograd.grad(z.sin().sum(), [x, *cell.parameters()]))
    agree(*found)
    assert peak[1] < peak[0] / 4


def test_checkpointed_steps_see_the_weights_of_the_solve():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = spectral_norm(nn.Linear(DIM, DIM, bias=False, dtype=torch.float64))

        def forward(self, z, x):
            return torch.tanh(0.5 * self.linear(z) + x)

    torch.manual_seed(0)
    x, results = inputs(), []
    for checkpoint in (False, True):
        torch.manual_seed(1)
        cell = Normalised()
        z = tight_layer(cell, UnrolledGradient(20, checkpoint=checkpoint))(x)
        buffer = cell.linear.parametrizations.weight[0]._u.clone()
        results.append(torch.autograd.grad(z.sin().sum(), [x, *cell.parameters()]))
        assert torch.equal(buffer, cell.linear.parametrizations.weight[0]._u)
    agree(*results)


def test_unrolled_gradients_agree_with_finite_differences():
    cell = Cell()
    layer = tight_layer(cell, UnrolledGradient(80))
    assert torch.autograd.gradcheck(layer, (inputs(2),))


# --- a backward solve that does not converge -----------------------------------------------------------------------


def hard(unconverged):
    cell = Linear(30, top=0.995)
    gradient = ImplicitGradient(solver=Picard(), rtol=1e-8, max_steps=5, unconverged=unconverged)
    return Equilibrium(cell, gradient=gradient, rtol=1e-10, max_steps=200)


@pytest.mark.parametrize("unconverged", Unconverged, ids=lambda u: u.name)
def test_what_a_backward_solve_that_missed_does(unconverged):
    torch.manual_seed(0)
    layer, x = hard(unconverged), torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        x[2:] = 0
    weight = torch.randn(4, 30, dtype=torch.float64)
    weight[3] = 0  # a row that converges at once
    raises = pytest.raises(ConvergenceError, match="MAX_STEPS") if unconverged is Unconverged.RAISE else nullcontext()
    with record() as log:
        z = layer(x)
    with pytest.warns(ConvergenceWarning, match=r"(?s)backward solve: 1 of 4 rows.*MAX_STEPS"), raises:
        z.backward(weight)
    assert log.backward[0].solution.status.tolist() == [1, 1, 1, 0]
    assert log.backward[0].solution.trace.shape == (5, 4)
    if unconverged is Unconverged.PHANTOM:
        torch.testing.assert_close(x.grad, weight)  # f = Az + x: the phantom gradient in x is u = g
    elif unconverged is Unconverged.KEEP:
        u = weight
        for _ in range(4):
            u = u @ layer.cell.matrix.detach() + weight
        torch.testing.assert_close(x.grad, u)


def test_the_warning_says_which_setting_is_meant():
    layer, x = hard(Unconverged.KEEP), torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match=r"(?s)MAX_STEPS.*gradient=ImplicitGradient\(solver=.*unconverged="):
        layer(x).sum().backward()


def test_an_unknown_way_out_is_refused():
    with pytest.raises(TypeError, match=r"unconverged='raise' must be one of Unconverged.KEEP"):
        ImplicitGradient(unconverged="raise")


# --- policies of one's own ---------------------------------------------------------------------------------------


def own(linear):
    class Own(AdjointGradient):
        def linear(self, product, shift, report, inverse):
            return linear(product, shift, report)

    return Own()


def accelerated_in_place(product, shift, report):
    u = shift
    for _ in range(3):
        u += 0.5 * (product(u) + shift - u)
    return u


@pytest.mark.parametrize(
    ("linear", "error", "words"),
    [
        (lambda product, g, report: None, TypeError, r"Own.linear returned None: return u, .* shape \(3, 6\)"),
        (lambda product, g, report: g[0], TypeError, r"a tensor of shape \(6,\), torch.float64"),
        (lambda product, g, report: g.float(), TypeError, "torch.float32: return u"),
        (accelerated_in_place, ValueError, "changed `shift` in place"),
        (
            lambda product, g, report: report(g > 0, lambda: None),
            TypeError,
            "of Own: converged is a Tensor: pass one bool",
        ),
        (lambda product, g, report: report(False, "solution"), TypeError, "make_solution is a str: pass a function"),
        (
            lambda product, g, report: report(False, lambda: None),
            TypeError,
            "returned a NoneType: return a solvers.Sol",
        ),
    ],
    ids=["no return", "one row", "another dtype", "in place", "bools", "no function", "no solution"],
)
def test_a_policy_of_ones_own_that_breaks_its_contract_is_told_how(linear, error, words):
    x = inputs(3)
    z = tight_layer(Cell(), own(linear))(x)
    with pytest.raises(error, match=words):
        z.square().sum().backward()
    layer = tight_layer(Cell(), own(linear))
    assert [finding.name for finding in diagnose(layer, x)] == ["the backward pass fails"]


def test_the_warning_of_a_policy_of_ones_own_names_it():
    def linear(product, shift, report):
        solution = solve(lambda u: product(u) + shift, shift, solver=Picard(), rtol=1e-12, max_steps=2)
        report(bool(solution.converged.all()), lambda: solution)
        return solution.value

    with pytest.warns(
        ConvergenceWarning, match="This is the solve of gradient=Own, which has its own settings"
    ) as told:
        tight_layer(Cell(), own(linear))(inputs()).sum().backward()
    assert "ImplicitGradient" not in str(told[0].message)


class Shifting(Gradient):
    """Forgets `with_value`."""

    def attach(self, at):
        return at.image


def test_a_policy_that_reaches_nothing_or_moves_the_value_is_found():
    x, found = inputs(), lambda layer: [finding.name for finding in diagnose(layer, x)]
    assert found(tight_layer(Cell(), own(lambda product, shift, report: torch.zeros_like(shift)))) == ["no gradient"]
    assert found(Equilibrium(Cell(), rtol=1e-2, gradient=Shifting()).double()) == ["gradient that changes the value"]
    assert found(tight_layer(Cell(), own(lambda product, shift, report: product(shift) + shift))) == []


@pytest.mark.parametrize("policy", [NeumannGradient, "neumann", None])
def test_a_policy_set_later_is_checked_at_the_next_call(policy):
    layer = tight_layer(Cell())
    layer.gradient = policy
    with pytest.raises(TypeError, match="is not a Gradient: pass an object such as ImplicitGradient"):
        layer(inputs())


def test_the_incoming_gradient_may_be_an_inference_tensor():
    layer, x = tight_layer(), inputs()
    z = layer(x)
    with torch.inference_mode():
        g = torch.ones_like(x)
    weight = layer.cell.inner.weight
    expected = torch.autograd.grad(z.sum(), weight, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(z, weight, g, retain_graph=True), expected)
    loss = z.sum()
    with torch.inference_mode():
        torch.testing.assert_close(torch.autograd.grad(loss, weight), expected)


@pytest.mark.parametrize(
    ("attach", "words"),
    [
        (
            lambda at: at.image[:1],
            r"returned a tensor of shape \(1, 6\), torch.float64: return a tensor equal to `at.point`, of s",
        ),
        (lambda at: at.image.float(), "torch.float32: return a tensor"),
        (lambda at: None, "returned None"),
    ],
    ids=["rows", "dtype", "None"],
)
def test_attach_is_held_to_its_contract(attach, words):
    class Attaching(Gradient):
        def attach(self, at):
            return attach(at)

    with pytest.raises(TypeError, match=f"Attaching.attach .*{words}" if words.startswith("torch") else words):
        tight_layer(Cell(), Attaching())(inputs())


def test_a_policy_may_report_rows_that_its_solver_calls_converged():
    def linear(product, shift, report):
        solution = solve(lambda u: product(u) + shift, shift)
        report(False, lambda: solution)
        return solution.value

    with pytest.warns(ConvergenceWarning, match="3 of 3 rows converged; its policy reports that it did not converge"):
        tight_layer(Cell(), own(linear))(inputs()).sum().backward()


@pytest.mark.parametrize(
    ("damping", "scale", "wrong"), [(0.5, 1, False), (0.9, 1, False), (0.99, 1, False), (0.99, 3, True)]
)
def test_undoing_is_said_to_be_wrong_where_the_gradient_is(damping, scale, wrong):
    def gradient(dtype):
        options = {"solver": Reversible(damping), "gradient": ReversibleGradient(), "rtol": 0.0, "max_steps": 40}
        torch.manual_seed(0)
        cell, x = Cell().to(dtype), inputs().detach().to(dtype)
        cell.inner.weight.data *= scale
        (found,) = torch.autograd.grad(Equilibrium(cell, **options)(x).sum(), cell.inner.weight)
        return found.double()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        single = gradient(torch.float32)
    assert any("undoing" in str(each.message) for each in told) == wrong
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        double = gradient(torch.float64)
    assert ((single - double).norm() > 1e-3 * double.norm()) == wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 0.3])
def test_steps_past_convergence_do_not_spoil_the_estimate(scale, dtype):
    """Their differences are rounding errors."""
    torch.manual_seed(0)
    weight = scale / 2 * torch.randn(4, 4, dtype=torch.float64)
    x0, v = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 4, dtype=torch.float64)

    def gradient(policy, **options):
        x, matrix = x0.to(dtype).requires_grad_(), weight.to(dtype)
        options = {"solver": Anderson(), "gradient": policy, "compact": False, **options}
        z = fixed_point(lambda z, x: torch.tanh(z @ matrix + x), torch.zeros_like(x), (x,), **options)
        return torch.autograd.grad(z, x, v.to(dtype))[0].double()

    true = gradient(ImplicitGradient(rtol=1e-6), rtol=1e-6)
    free = (gradient(PhantomGradient(1)) - true).norm(dim=1)
    for rtol, every in ((1e-4, 1), (1e-4, 8), (1e-6, 16)):
        shine = (gradient(ShineGradient(), rtol=rtol, loop=Eager(every)) - true).norm(dim=1)
        assert float(shine.norm() / free.norm()) < 1
        assert float((shine / free).max()) < 2


def test_the_estimate_where_a_second_solver_has_taken_over():
    """It learns no inverse: for rows that stopped under it, v itself is the estimate."""

    class Cubic(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, z, a, b):
            return self.weight * a * z * (1 - z * z / 3) + b

    generator = torch.Generator().manual_seed(0)
    layer = Equilibrium(
        Cubic(),
        solver=Anderson(3),
        gradient=ShineGradient(),
        loop=Eager(1),
        compact=False,
        initial=lambda a, b: torch.zeros_like(b),
    )
    for _ in range(20):
        drawn = (
            torch.rand(4, 1, generator=generator, device="cpu"),
            torch.randn(4, 3, generator=generator, device="cpu"),
        )
        a, b = (each.to(layer.cell.weight.device) for each in drawn)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer.zero_grad()
            layer(4 * a, b).sum().backward()
        assert layer.cell.weight.grad.isfinite().all()
