"""torch.func and forward mode through an equilibrium, against a converged unrolling under the same transform."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from implicit import ConvergenceWarning, PhantomGradient, fixed_point, record

from .cells import DIM, TIGHT, Cell, exact, inputs, tight_layer, unrolled

# PyTorch's own, when it first differentiates forwards
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")


@pytest.fixture
def case():
    cell = Cell()
    layer = tight_layer(cell)
    return cell, layer, inputs().detach()


def agree(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_grad_and_vjp_and_jvp(case):
    cell, layer, x = case
    agree(grad(lambda x: layer(x).sin().sum())(x), grad(lambda x: unrolled(cell, x).sin().sum())(x))
    agree(vjp(layer, x)[1](x)[0], vjp(lambda x: unrolled(cell, x), x)[1](x)[0])
    agree(jvp(layer, (x,), (x.cos(),)), jvp(lambda x: unrolled(cell, x), (x,), (x.cos(),)))


def test_grad_in_the_parameters_through_functional_call(case):
    cell, layer, x = case
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    found = grad(lambda parameters: functional_call(layer, parameters, (x,)).sin().sum())(parameters)

    def plain(parameters):
        step = {name.removeprefix("cell."): p for name, p in parameters.items()}
        return unrolled(lambda z, x: functional_call(cell, step, (z, x)), x).sin().sum()

    agree(found, grad(plain)(parameters))


@pytest.mark.parametrize("transform", [jacrev, jacfwd, hessian], ids=lambda f: f.__name__)
def test_jacobians_and_hessians(case, transform):
    cell, layer, x = case
    found = transform(lambda x: layer(x).sin().sum(0))(x[:2])
    agree(found, transform(lambda x: unrolled(cell, x).sin().sum(0))(x[:2]))


@pytest.mark.parametrize("order", ["ff", "fr", "rf", "rr", "fff", "ffr", "frf", "rff", "frr"])
def test_derivatives_of_any_order_in_any_mode(case, order):
    cell, layer, x = case
    derivatives = {"f": lambda f: jacfwd(lambda s: f(s)), "r": lambda f: jacrev(lambda s: f(s))}

    def of(f):
        for mode in reversed(order):
            f = derivatives[mode](f)
        return f(torch.tensor(0.3, dtype=x.dtype))

    found = of(lambda s: layer(x * s + s.sin()).sin().sum())
    agree(found, of(lambda s: unrolled(cell, x * s + s.sin()).sin().sum()))


def test_vmap_over_inputs_and_over_an_ensemble(case):
    _, layer, x = case
    stacked = torch.stack((x, x + 1))
    agree(vmap(layer)(stacked), torch.stack([layer(x), layer(x + 1)]))
    cells = [Cell(), Cell()]
    parameters, buffers = torch.func.stack_module_state([tight_layer(c) for c in cells])
    found = vmap(lambda p, x: functional_call(layer, (p, buffers), (x,)), in_dims=(0, None))(parameters, x)
    agree(found, torch.stack([unrolled(c, x) for c in cells]))


def test_gradients_of_each_sample(case):
    cell, layer, x = case

    def loss(parameters, row):
        return functional_call(layer, parameters, (row[None],)).sin().sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for row in range(len(x)):
        layer.zero_grad()
        unrolled(cell, x[row : row + 1]).sin().sum().backward()
        agree(found["cell.inner.weight"][row], cell.inner.weight.grad)


def test_forward_mode_without_a_transform(case):
    cell, layer, x = case
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x.cos()))).tangent
    agree(found, jvp(lambda x: unrolled(cell, x), (x,), (x.cos(),))[1])


def test_states_of_several_tensors():
    def f(z, x):
        return torch.tanh(0.3 * z[1] + x), (0.5 * z[0] * x).sin()

    def first(x):
        start = (torch.zeros_like(x), torch.zeros_like(x))
        return fixed_point(f, start, (x,), gradient=exact(), **TIGHT)[0].sum()

    def plain(x):
        z = (torch.zeros_like(x), torch.zeros_like(x))
        for _ in range(100):
            z = f(z, x)
        return z[0].sum()

    x = inputs(2).detach()
    agree(hessian(first)(x), hessian(plain)(x))


def test_the_start_has_no_derivative_and_rows_may_be_dropped(case):
    _, layer, x = case
    layer.compact = True
    assert not grad(lambda start: layer(x, z0=start).sum())(torch.zeros_like(x)).any()


def test_solves_are_recorded_and_warned_of(case):
    _, layer, x = case
    with record() as log:
        grad(lambda x: layer(x).sum())(x)
    assert len(log.forward) == len(log.backward) == 1
    layer.max_steps = 2
    with pytest.warns(ConvergenceWarning, match="forward solve"):
        grad(lambda x: layer(x).sum())(x)


def test_a_captured_tensor_under_a_transform_is_refused():
    x = inputs().detach()

    def loss(matrix):
        return fixed_point(lambda z, x: torch.tanh(z @ matrix + x), torch.zeros_like(x), (x,)).sum()

    matrix = 0.1 * torch.eye(DIM, dtype=torch.float64)
    tracked = matrix.clone().requires_grad_()
    for attempt in (
        lambda: grad(loss)(matrix),
        lambda: jvp(loss, (matrix,), (matrix,)),
        lambda: vmap(loss)(matrix[None]),
        lambda: vmap(grad(loss))(matrix[None]),
        # the transform does not follow it, autograd around does
        lambda: vmap(lambda x: loss(tracked) + x)(torch.zeros(2)),
    ):
        with pytest.raises(RuntimeError, match="captures a tensor that a transform"):
            attempt()


def test_an_equilibrium_within_the_cell(case):
    cell, layer, x = case

    class Nested(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def forward(self, z, x):
            return torch.tanh(0.2 * self.inside(0.3 * z + x) + x)

    def plain(x):
        return unrolled(Nested(lambda x: unrolled(cell, x, 60)), x, 60)

    nested = tight_layer(Nested(layer))
    agree(grad(lambda x: nested(x).sin().sum())(x), grad(lambda x: plain(x).sin().sum())(x))
    agree(jvp(nested, (x,), (x,)), jvp(plain, (x,), (x,)))


def test_inexact_gradients_refuse_transforms(case):
    _, layer, x = case
    layer.gradient = PhantomGradient()
    with pytest.raises(RuntimeError, match=r"PhantomGradient.*ImplicitGradient"):
        grad(lambda x: layer(x).sum())(x)


class Plain(nn.Module):
    def forward(self, z, x):
        return 2 * x


def test_a_cell_that_ignores_its_state(case):
    *_, x = case
    layer = tight_layer(Plain())
    agree(jvp(layer, (x,), (x,)), (2 * x, 2 * x))
    agree(grad(lambda x: grad(lambda x: layer(x).square().sum())(x).sum())(x), torch.full_like(x, 8.0))
