"""Derivatives of derivatives, against a converged unrolling that autograd sees whole."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from implicit import (
    Equilibrium,
    ImplicitGradient,
    NeumannGradient,
    PhantomGradient,
    ShineGradient,
    UnrolledGradient,
    fixed_point,
    root,
)
from solvers import GMRES, Anderson, Broyden, NewtonKrylov, Picard

from .cells import DIM, TIGHT, Cell, exact, inputs, tight_layer, unrolled


def hessian_product(loss, targets, vectors):
    """H v of the loss in the targets."""
    gradients = torch.autograd.grad(loss, targets, create_graph=True)
    inner = sum((g * v).sum() for g, v in zip(gradients, vectors, strict=True))
    return torch.autograd.grad(inner, targets)


def agree(found, expected, rtol=1e-8, atol=1e-9):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden(), GMRES(), NewtonKrylov()], ids=repr)
def test_hessian_vector_products_equal_those_of_a_converged_unrolling(solver):
    cell, x = Cell(), inputs()
    targets = [x, *cell.parameters()]
    vectors = [torch.randn_like(t) for t in targets]
    weight = torch.randn_like(x)
    forward = Anderson() if isinstance(solver, GMRES) else solver
    layer = tight_layer(cell, exact(solver), solver=forward)
    found = hessian_product((layer(x).sin() * weight).sum(), targets, vectors)
    agree(found, hessian_product((unrolled(cell, x).sin() * weight).sum(), targets, vectors))


def test_gradgradcheck_in_inputs_and_parameters():
    cell, x = Cell(), inputs(2)
    layer = tight_layer(cell)

    def value(x, weight, bias):
        return torch.func.functional_call(layer, {"cell.inner.weight": weight, "cell.inner.bias": bias}, (x,))

    arguments = (x, *(p.detach().clone().requires_grad_() for p in cell.parameters()))
    assert torch.autograd.gradcheck(value, arguments)
    assert torch.autograd.gradgradcheck(value, arguments)


def test_third_derivatives():
    cell, x = Cell(), inputs(1)

    def third(z):
        (first,) = torch.autograd.grad(z.sin().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(second.sin().sum(), x)

    agree(third(tight_layer(cell)(x)), third(unrolled(cell, x)))


def test_other_terms_of_the_loss_may_share_the_graph():
    cell, x = Cell(), inputs()
    targets = [x, *cell.parameters()]
    vectors = [torch.randn_like(t) for t in targets]

    def loss(z):
        weight = cell.inner.weight
        return z.square().sum() + (x @ weight).sin().sum() + (z @ weight).cos().sum() + weight.pow(3).sum()

    found = hessian_product(loss(tight_layer(cell)(x)), targets, vectors)
    agree(found, hessian_product(loss(unrolled(cell, x)), targets, vectors))


def test_a_gradient_penalty_trains():
    cell, x = Cell(), inputs()

    def penalised(z):
        (slope,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
        return torch.autograd.grad(z.sum() + slope.square().sum(), list(cell.parameters()))

    agree(penalised(tight_layer(cell)(x)), penalised(unrolled(cell, x)))


def test_a_layer_of_a_layer_and_an_input_with_a_history():
    cell, x = Cell(), inputs(2)
    layer = tight_layer(cell)
    targets = [x, *cell.parameters()]
    vectors = [torch.randn_like(t) for t in targets]
    found = hessian_product(layer(layer(x @ cell.inner.weight)).sin().sum(), targets, vectors)
    expected = unrolled(cell, unrolled(cell, x @ cell.inner.weight)).sin().sum()
    agree(found, hessian_product(expected, targets, vectors))


class Nested(nn.Module):
    """A cell with an equilibrium inside."""

    def __init__(self, make):
        super().__init__()
        self.inside = make(Cell())
        self.mix = nn.Linear(DIM, DIM, dtype=torch.float64)
        nn.init.uniform_(self.mix.weight, -0.1, 0.1)

    def forward(self, z, x):
        return torch.tanh(self.mix(z) + self.inside(0.3 * z + x))


class Unrolled(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        return unrolled(self.cell, x, 60)


def test_an_equilibrium_within_the_cell():
    cell, x = Nested(tight_layer), inputs(1)
    plain = Nested(Unrolled)
    plain.load_state_dict(cell.state_dict())
    targets, twins = [x, *cell.parameters()], [x, *plain.parameters()]
    vectors = [torch.randn_like(t) for t in targets]
    found, expected = tight_layer(cell)(x).sin().sum(), unrolled(plain, x, 60).sin().sum()
    first = torch.autograd.grad(found, targets, retain_graph=True)
    agree(first, torch.autograd.grad(expected, twins, retain_graph=True))
    agree(hessian_product(found, targets, vectors), hessian_product(expected, twins, vectors))


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = spectral_norm(nn.Linear(DIM, DIM, bias=False, dtype=torch.float64))

    def forward(self, z, x):
        return torch.tanh(0.5 * self.linear(z) + x)


@pytest.mark.parametrize("between", [0, 3])
def test_parametrized_weights_are_those_of_the_solve(between):
    # the layer's buffers move at each forward in training mode; the second derivative is of this one
    cell, x = Normalised(), inputs()
    layer = tight_layer(cell)
    original = cell.linear.parametrizations.weight.original
    z = layer(x)
    state = cell.linear.parametrizations.weight[0]
    u, v = state._u.clone(), state._v.clone()
    for _ in range(between):
        layer(x.detach())
    vectors = [torch.randn_like(x), torch.randn_like(original)]
    found = hessian_product(z.sin().sum(), [x, original], vectors)
    weight = original / (u @ original @ v)
    plain = unrolled(lambda z, x: torch.tanh(0.5 * z @ weight.T + x), x)
    agree(found, hessian_product(plain.sin().sum(), [x, original], vectors))


def test_states_of_several_tensors():
    def f(z, x):
        return torch.tanh(0.3 * z[1] + x), (0.5 * z[0] * x).sin()

    x = inputs(2)
    start = (torch.zeros_like(x), torch.zeros_like(x))

    def value(x):
        return fixed_point(f, start, (x,), gradient=exact(), **TIGHT)

    assert torch.autograd.gradgradcheck(value, (x,))


def test_captured_tensors_without_gradient_do_no_harm():
    matrix = 0.1 * torch.randn(DIM, DIM, dtype=torch.float64)
    x = inputs()

    def f(z, x):
        return torch.tanh(z @ matrix + x)

    vector = [torch.randn_like(x)]
    z = fixed_point(f, torch.zeros_like(x), (x,), gradient=exact(), **TIGHT)
    found = hessian_product(z.sin().sum(), [x], vector)
    agree(found, hessian_product(unrolled(f, x).sin().sum(), [x], vector))


def test_a_weight_changed_in_between_is_noticed():
    cell, x = Cell(), inputs()
    z = tight_layer(cell)(x)
    with torch.no_grad():
        cell.inner.weight.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(z.square().sum(), x, create_graph=True)


def test_inexact_gradients_refuse():
    layer, x = Equilibrium(Cell(), gradient=PhantomGradient()), inputs()
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)


def test_the_first_derivative_is_the_same_with_and_without_a_graph():
    cell, x = Cell(), inputs()
    layer = Equilibrium(cell, rtol=1e-10, gradient=ImplicitGradient(rtol=1e-10))
    targets = [x, *cell.parameters()]
    plain = torch.autograd.grad(layer(x).square().sum(), targets)
    tracked = torch.autograd.grad(layer(x).square().sum(), targets, create_graph=True)
    agree(tracked, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e5, 1e10])
@pytest.mark.parametrize("of_image", [1e-6, 1.0, 1e6])
def test_derivatives_of_a_root_whatever_the_units_of_state_and_image(dtype, unit, of_image):
    draw = torch.Generator().manual_seed(0)
    matrix = torch.eye(3, dtype=torch.float64) + 0.3 * torch.randn(3, 3, generator=draw, dtype=torch.float64)
    x = torch.randn(2, 3, generator=draw, dtype=torch.float64)

    def F(z, x):
        u = z / unit
        return of_image * ((u**3 + u) @ matrix.to(z).T - x)

    def found(x):
        start = torch.full((2, 3), 0.5 * unit, dtype=dtype)
        return root(F, start, (x,), rtol=1e-6, atol=0.0, gradient=ImplicitGradient(rtol=1e-5)) / unit

    value = found(given := x.to(dtype).requires_grad_()).detach().double()
    jacobians = [matrix @ torch.diag(3 * row**2 + 1) for row in value]
    expected = torch.stack([torch.linalg.solve(jacobian.T, torch.ones(3).double()) for jacobian in jacobians])
    (first,) = torch.autograd.grad(found(given).sum(), given, create_graph=True)
    (transformed,) = torch.func.vjp(found, given.detach())[1](torch.ones(2, 3, dtype=dtype))
    for gradient in (first, transformed):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-4)
    # the second derivative of u(x), from u³ + u = w, w = M⁻¹x
    (second,) = torch.autograd.grad(first.sum(), given)
    inverse = torch.linalg.inv(matrix)
    curvature = -6 * value / (3 * value**2 + 1) ** 3
    exact = torch.einsum("bi,ij,ik->bj", curvature, inverse, inverse)
    torch.testing.assert_close(second.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("policy", [PhantomGradient(steps=5), NeumannGradient(), UnrolledGradient(steps=5)], ids=repr)
def test_no_gradient_of_a_root_depends_on_the_units(policy):
    draw = torch.Generator().manual_seed(0)
    matrix = torch.eye(3, dtype=torch.float64) + 0.3 * torch.randn(3, 3, generator=draw, dtype=torch.float64)
    x = torch.randn(2, 3, generator=draw, dtype=torch.float64).requires_grad_()
    found = []
    for unit, of_image in ((1.0, 1.0), (2.0**17, 2.0**-10), (2.0**-20, 2.0**13)):

        def F(z, x, unit=unit, of_image=of_image):
            return of_image * (((z / unit) ** 3 + z / unit) @ matrix.T - x)

        start = torch.full((2, 3), 0.5 * unit, dtype=torch.float64)
        value = root(F, start, (x,), rtol=1e-12, atol=0.0, gradient=policy) / unit
        found.append(torch.autograd.grad(value.sum(), x)[0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("factor", [0.1, 1.0, 3.0])
def test_what_a_solver_has_learned_of_a_root_is_in_the_units_of_its_gradient(factor):
    matrix = torch.randn(6, 6, dtype=torch.float64)
    matrix = 0.5 * matrix / torch.linalg.matrix_norm(matrix, 2)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def F(z, x):
        return factor * (z - torch.tanh(z @ matrix + x))

    found = []
    for policy in (ImplicitGradient(rtol=1e-10), ShineGradient()):
        value = root(
            F, torch.zeros_like(x), (x,), solver=Anderson(period=1), rtol=1e-10, max_steps=2000, gradient=policy
        )
        found.append(torch.autograd.grad(value.sum(), x)[0])
    assert 0.8 < float(found[1].norm() / found[0].norm()) < 1.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-9])
def test_another_kernel_rounds_what_an_image_near_zero_is_computed_from(dtype, scale):
    torch.manual_seed(0)
    weight, x = (torch.randn(16, 16) / 4).to(dtype), torch.randn(3, 5, 16).to(dtype).requires_grad_()

    def attended(z):
        h = (z @ weight).view(3, 5, 4, 4).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(h, h, h).transpose(1, 2).reshape(3, 5, 16)

    def residual(z, x):
        return z + 0.3 * (attended(z + x) - attended(x)) - scale * x

    z = root(residual, torch.full_like(x, 0.01).detach(), (x,))
    torch.autograd.grad(z.square().sum(), x, create_graph=True)  # warnings are errors
