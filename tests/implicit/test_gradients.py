"""Gradients through an equilibrium, against routes that share no code with it."""

import copy
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from implicit import (
    Equilibrium,
    ImplicitGradient,
    NeumannGradient,
    PhantomGradient,
    ShineGradient,
    UnrolledGradient,
    fixed_point,
    record,
)
from solvers import GMRES, Anderson, Broyden, Monotone, NewtonKrylov, Picard

from .cells import DIM, TIGHT, Cell, exact, inputs, tight_layer

SOLVERS = [Picard(), Anderson(), Broyden(), NewtonKrylov(), Monotone()]


def dense_gradients(cell, x, weight):
    """d(weight·z*) in x and the cell's parameters, by a dense solve with the Jacobian of each row."""
    z = Equilibrium(cell, **TIGHT).solve(x).value
    total = None
    for row in range(len(x)):
        zr, xr = z[row : row + 1].detach(), x[row : row + 1].detach().requires_grad_()
        jacobian = torch.autograd.functional.jacobian(lambda z, xr=xr: cell(z, xr.detach())[0], zr)[:, 0]
        u = torch.linalg.solve((torch.eye(DIM) - jacobian).T, weight[row])
        gradients = torch.autograd.grad((cell(zr, xr)[0] * u).sum(), [xr, *cell.parameters()])
        if total is None:
            total = [[], *gradients[1:]]
        else:
            total = [total[0], *(a + b for a, b in zip(total[1:], gradients[1:], strict=True))]
        total[0].append(gradients[0])
    return [torch.cat(total[0]), *total[1:]]


# --- exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backward", [*SOLVERS, GMRES()], ids=repr)
@pytest.mark.parametrize("forward", SOLVERS, ids=repr)
def test_gradients_equal_a_dense_solve(forward, backward):
    cell, x, weight = Cell(), inputs(), torch.randn(3, DIM, dtype=torch.float64)
    layer = tight_layer(cell, exact(backward), solver=forward)
    found = torch.autograd.grad((layer(x) * weight).sum(), [x, *cell.parameters()])
    for one, other in zip(found, dense_gradients(cell, x, weight), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_gradcheck(solver):
    matrix = (0.2 * torch.randn(DIM, DIM, dtype=torch.float64)).requires_grad_()

    def value(matrix, x):
        return fixed_point(
            lambda z, x: torch.tanh(z @ matrix.T + x),
            torch.zeros_like(x),
            (x,),
            solver=solver,
            gradient=exact(solver),
            **TIGHT,
        )

    assert torch.autograd.gradcheck(value, (matrix, inputs(2)))


def test_value_and_gradient_agree_with_torchdeq():
    torchdeq = pytest.importorskip("torchdeq")

    class ConvCell(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
            self.norm = nn.GroupNorm(2, 4)

        def forward(self, z, x):
            return self.norm(torch.tanh(x + self.second(torch.relu(self.first(z)))))

    cell, x = ConvCell().double(), torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    for convolution in (cell.first, cell.second):
        convolution.weight.data.mul_(0.5)
    ours = tight_layer(cell)(x)
    reference = torchdeq.get_deq(
        ift=True, f_solver="fixed_point_iter", b_solver="fixed_point_iter", f_max_iter=300, b_max_iter=300,
        f_tol=1e-12, b_tol=1e-12, f_stop_mode="abs", b_stop_mode="abs",
    )  # fmt: skip
    theirs = reference(lambda z: cell(z, x), torch.zeros_like(x))[0][-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    weight = torch.randn_like(x)
    targets = [x, *cell.parameters()]
    ours, theirs = (torch.autograd.grad((z * weight).sum(), targets) for z in (ours, theirs))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e-7, 1e6, 1e30])
def test_the_losss_scale_changes_nothing(scale):
    cell, x = Cell().float(), inputs().detach().float().requires_grad_()
    layer = Equilibrium(cell, rtol=1e-6)
    (reference,) = torch.autograd.grad(layer(x).square().sum(), x)
    (found,) = torch.autograd.grad(scale * layer(x).square().sum(), x)
    torch.testing.assert_close(found / scale, reference, rtol=1e-5, atol=1e-6)


def test_policies_agree_in_the_limit_and_in_value():
    cell, x = Cell(), inputs()
    reference = tight_layer(cell)
    (expected,) = torch.autograd.grad(reference(x).square().sum(), x)
    for gradient in (PhantomGradient(steps=80), PhantomGradient(160, damping=0.5), UnrolledGradient(80)):
        layer = tight_layer(cell, gradient)
        value = layer(x)
        assert torch.equal(value, reference(x))
        assert torch.equal(value, layer.solve(x).value)
        (found,) = torch.autograd.grad(value.square().sum(), x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_one_phantom_step_is_jacobian_free_backpropagation():
    cell, x = Cell(), inputs()
    layer = tight_layer(cell, PhantomGradient())
    found = torch.autograd.grad(layer(x).square().sum(), [x, *cell.parameters()])
    z = layer.solve(x).value
    expected = torch.autograd.grad(cell(z, x), [x, *cell.parameters()], grad_outputs=2 * z)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_unrolled_gradient_is_that_of_the_unrolled_steps():
    cell, x, start = Cell(), inputs(), torch.randn(3, DIM, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(tight_layer(cell, UnrolledGradient(4, damping=0.5))(x, z0=start).sum(), [x, start])

    def four_steps(x, start):
        z = start
        for _ in range(4):
            z = z + 0.5 * (cell(z, x) - z)
        return z

    expected = torch.autograd.grad(four_steps(x, start).sum(), [x, start])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_tuple_states_have_gradients():
    x = inputs()

    def f(z, x):
        return torch.tanh(0.3 * z[1][:, :DIM] + x), torch.cat((0.5 * z[0], 0.2 * z[1][:, :DIM]), dim=1).sin()

    def value(x):
        start = (torch.zeros_like(x), torch.zeros(len(x), 2 * DIM, dtype=x.dtype))
        fine, coarse = fixed_point(f, start, (x,), gradient=exact(), **TIGHT)
        return fine, coarse

    assert torch.autograd.gradcheck(value, (x,))


# --- use ---------------------------------------------------------------------------------------------------------


def test_the_same_layer_twice_in_a_graph():
    layer, x, y = tight_layer(), inputs(), inputs()
    (together,) = torch.autograd.grad(layer(x).sum() + 2 * layer(y).sum(), layer.cell.inner.bias)
    (first,) = torch.autograd.grad(layer(x).sum(), layer.cell.inner.bias)
    (second,) = torch.autograd.grad(2 * layer(y).sum(), layer.cell.inner.bias)
    torch.testing.assert_close(together, first + second)


def test_a_layer_of_a_layer():
    layer = tight_layer()
    assert torch.autograd.gradcheck(lambda x: layer(layer(x)), (inputs(2),))


def test_the_backward_solve_does_not_walk_through_what_came_before_the_layer():
    # autograd looks no further up than the point that it differentiates at, so the inputs must be above that
    class Watched(Cell):
        def forward(self, z, x):
            self.seen = z.grad_fn
            return super().forward(z, x)

    cell = Watched()
    x = torch.sin(inputs())
    z = tight_layer(cell, exact(GMRES()))(x)
    above, queue = set(), [cell.seen]
    while queue:
        node = queue.pop()
        above.add(node)
        queue += [following for following, _ in node.next_functions if following is not None]
    assert z.requires_grad
    assert x.grad_fn in above


@pytest.mark.parametrize("gradient", [ImplicitGradient(), NeumannGradient(), ShineGradient()], ids=repr)
def test_what_f_detaches_is_no_part_of_the_backward_pass(gradient):
    class Carrying(Cell):
        def forward(self, z, x, carried):
            return super().forward(z, x + 0.1 * carried.detach())

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *grads):
            calls.append(grads)
            return grads[0]

    calls, layer, weight = [], Equilibrium(Carrying(), gradient=gradient), torch.ones(3, DIM, dtype=torch.float64)
    weight.requires_grad_()
    carried = torch.zeros(3, DIM, dtype=torch.float64)
    for _ in range(3):  # through time, where the graph of the last step is gone
        carried = Counted.apply(layer(weight.sin(), carried))
        carried.sum().backward()
    assert len(calls) == 3
    carried = weight.cos()
    carried.register_hook(calls.append)
    layer(weight.sin(), carried).sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("gradient", [ImplicitGradient(), NeumannGradient(), PhantomGradient()], ids=repr)
def test_an_output_keeps_no_input_alive_after_its_backward(gradient):
    layer, x = Equilibrium(Cell(), gradient=gradient), inputs()
    inside = x.sin()
    known = weakref.ref(inside)
    z = layer(inside)
    z.sum().backward()
    del inside
    assert known() is None
    assert z.requires_grad


def test_a_parameter_used_upstream_too_gets_both_gradients():
    cell = Cell()
    weight = cell.inner.weight

    def loss(weight):
        z = torch.func.functional_call(tight_layer(cell), {"cell.inner.weight": weight}, (x @ weight.T,))
        return z.square().sum()

    x = inputs().detach()
    assert torch.autograd.gradcheck(loss, (weight.detach().clone().requires_grad_(),))


def test_backward_twice_with_retained_graph_and_two_losses():
    layer, x = tight_layer(), inputs()
    z = layer(x)
    (once,) = torch.autograd.grad(z.sum(), x, retain_graph=True)
    (again,) = torch.autograd.grad(z.sum(), x, retain_graph=True)
    (other,) = torch.autograd.grad(3 * z.sum(), x)
    assert torch.equal(once, again)
    torch.testing.assert_close(other, 3 * once)


def test_evaluation_mode_has_gradients_and_no_grad_has_none():
    layer, x = tight_layer(), inputs()
    training = torch.autograd.grad(layer(x).sum(), x)
    layer.eval()
    assert torch.equal(torch.autograd.grad(layer(x).sum(), x)[0], training[0])
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        assert torch.equal(layer(x), layer.solve(x).value)


def test_gradients_only_where_something_wants_them():
    layer, x = tight_layer(), inputs().detach()
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    assert layer(x.requires_grad_()).requires_grad
    captured = torch.ones(1, 1, requires_grad=True)
    start = torch.zeros(2, 1)
    assert not fixed_point(lambda z: z / 2 + captured.detach(), start).requires_grad
    value = fixed_point(lambda z: z / 2 + captured, start)
    (gradient,) = torch.autograd.grad(value.sum(), captured)
    torch.testing.assert_close(gradient, torch.tensor([[4.0]]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("gradient", [ImplicitGradient(), PhantomGradient(), UnrolledGradient(1)], ids=repr)
def test_a_map_that_ignores_its_state(gradient):
    x = inputs()
    value = fixed_point(lambda z, x: 2 * x, torch.zeros_like(x), (x,), gradient=gradient)
    assert torch.equal(torch.autograd.grad(value.sum(), x)[0], torch.full_like(x, 2))


def test_rows_without_a_gradient_stay_without():
    layer, x = tight_layer(), inputs()
    with record() as log:
        layer(x)[0].sum().backward()
    assert (x.grad[1:] == 0).all()
    assert x.grad[0].abs().min() > 0
    assert log.backward[0].solution.converged.all()


def test_the_output_may_be_written_to():
    layer, x, start = tight_layer(), inputs(), torch.zeros(3, DIM, dtype=torch.float64)
    z = layer(x, z0=start)
    expected = torch.autograd.grad(layer(x).relu().sum(), x)[0]
    found = torch.autograd.grad(z.relu_().sum(), x)[0]
    assert torch.equal(start, torch.zeros_like(start))
    torch.testing.assert_close(found, expected)


def test_unrolled_steps_have_second_derivatives():
    layer = tight_layer(gradient=UnrolledGradient(60))
    assert torch.autograd.gradgradcheck(lambda x: layer(x), (inputs(1),))


def test_memory_does_not_grow_with_the_steps():
    def saved(max_steps):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            Equilibrium(Cell(), solver=Picard(), rtol=0.0, atol=0.0, max_steps=max_steps)(x)
        return sum(sizes)

    x = inputs()
    with pytest.warns(UserWarning, match="MAX_STEPS"):
        assert saved(3) == saved(25)


def test_copies_and_state_dicts_work():
    layer, x = tight_layer(), inputs()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    other = tight_layer()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    layer, x = tight_layer(), inputs()
    expected = torch.autograd.grad(layer(x).square().sum(), x)[0]
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


# --- parametrized weights ----------------------------------------------------------------------------------------


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = spectral_norm(nn.Linear(DIM, DIM, bias=False, dtype=torch.float64))
        self.seen = []

    def forward(self, z, x):
        weight = self.linear.weight
        self.seen.append(weight.detach().clone())
        return torch.tanh(0.5 * z @ weight.T + x)


def test_one_solve_sees_one_weight_and_its_parameter_gets_a_gradient():
    cell, x = Normalised(), inputs()
    layer = tight_layer(cell)
    layer(x).sum().backward()
    assert len(cell.seen) > 3
    assert all(torch.equal(weight, cell.seen[0]) for weight in cell.seen)
    original = cell.linear.parametrizations.weight.original
    # by hand: the vectors of the power iteration are constants
    state = cell.linear.parametrizations.weight[0]
    free = original.detach().clone().requires_grad_()
    weight = free / (state._u @ free @ state._v)
    torch.testing.assert_close(weight.detach(), cell.seen[0])
    plain = fixed_point(
        lambda z, x: torch.tanh(0.5 * z @ weight.T + x), torch.zeros_like(x), (x.detach(),), gradient=exact(), **TIGHT
    )
    (expected,) = torch.autograd.grad(plain.sum(), free)
    torch.testing.assert_close(original.grad, expected, rtol=1e-8, atol=1e-10)


def test_a_solve_before_does_not_rob_the_layer_of_its_gradient():
    layer, x = tight_layer(Normalised()), inputs()
    with torch.nn.utils.parametrize.cached():
        layer.solve(x)
        layer(x).sum().backward()
    assert layer.cell.linear.parametrizations.weight.original.grad is not None


@pytest.mark.parametrize("make", [Cell, Normalised])
def test_threads_may_share_a_layer(make):
    layer, x = tight_layer(make()).eval(), inputs()
    targets = list(layer.parameters())
    expected = torch.autograd.grad(layer(x).sum(), targets)
    found, errors = [], []

    def work():
        try:
            found.append(torch.autograd.grad(layer(x).sum(), targets))
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for gradients in found:
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Equilibrium(torch.tanh), TypeError, "use fixed_point for a function"),
        (lambda: Equilibrium(Cell(), gradient="ift"), TypeError, r"gradient='ift'.*ImplicitGradient\(\)"),
        (lambda: Equilibrium(Cell(), solver=Picard), TypeError, "not a Solver"),
        (lambda: Equilibrium(Cell(), f_tol=1e-3), TypeError, "f_tol"),
        (lambda: Equilibrium(Cell())(), TypeError, "pass initial= or z0="),
        (lambda: Equilibrium(nn.Linear(4, 4))(), TypeError, "pass initial= or z0="),
        (lambda: Equilibrium(Wider())(torch.zeros(2, 3)), ValueError, "pass an initial state of the right shape"),
        (lambda: ImplicitGradient(rtol=-1), ValueError, "rtol=-1"),
        (lambda: PhantomGradient(steps=0), ValueError, "steps=0"),
        (lambda: UnrolledGradient(steps=3, damping=0), ValueError, "damping=0"),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


class Wider(nn.Module):
    def forward(self, z, x):
        return torch.cat((x, x), dim=1)
