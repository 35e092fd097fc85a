"""The method decides the path, the map decides the answer: one equilibrium and one gradient for all methods."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from implicit import Equilibrium, ImplicitGradient
from models import FISTA, ContractiveDense, Fidelity, GradientDescent, Nesterov, OptDEQ, OptDNN, ProximalGradient

WIDTH = 5
GRADIENT = ImplicitGradient(rtol=1e-12)


class Sum(nn.Module):
    """`T = G + P`, what a method of one transform takes in place of the pair."""

    def __init__(self, smooth, proximal):
        super().__init__()
        self.smooth, self.proximal = smooth, proximal

    def forward(self, z, x):
        return self.smooth(z, x) + self.proximal(z, x)


CASES = [
    (GradientDescent(), 1.0),
    (Nesterov(0.3), 1.0),
    (ProximalGradient(), 0.0),
    (ProximalGradient(), 0.5),
    (ProximalGradient(), 1.0),
    (FISTA(0.3), 0.0),
    (FISTA(0.3), 0.5),
    (FISTA(0.3), 1.0),
]
by_case = pytest.mark.parametrize(("method", "alpha"), CASES, ids=lambda value: repr(value))


def problem():
    contraction = ContractiveDense(WIDTH, 16, inputs=WIDTH, lipschitz=0.7).eval()
    nn.init.normal_(contraction.bias)
    return Sum(Fidelity(), contraction), torch.randn(3, WIDTH, requires_grad=True)


def transform_for(method, total):
    return (total.smooth, total.proximal) if isinstance(method, (ProximalGradient, FISTA)) else total


def exactly(net):
    for part in net.modules():
        if isinstance(part, Equilibrium):
            part.atol = 0.0  # only rtol decides
    return net


def deep(method, total, alpha):
    return exactly(OptDEQ(method, transform_for(method, total), alpha=alpha, rtol=1e-12, gradient=GRADIENT))


def gradients(output, total, x):
    weight = torch.arange(1.0, output.numel() + 1).view_as(output)
    return torch.autograd.grad((weight * output).sum(), [x, *total.parameters()])


def dense_reference(total, x):
    """The root by SciPy, its gradient by the implicit function theorem with dense Jacobians."""

    def function(z, row):
        return total(torch.as_tensor(z)[None], row[None])[0]

    roots, adjoints = [], []
    for number, row in enumerate(x.detach()):
        root = scipy.optimize.root(
            lambda z, row=row: function(z, row).detach().cpu().numpy(), np.zeros(WIDTH), tol=1e-14
        )
        z = torch.as_tensor(root.x)
        jacobian = torch.autograd.functional.jacobian(lambda z, row=row: function(z, row), z)
        weight = torch.arange(1.0, WIDTH + 1) + number * WIDTH
        roots.append(z)
        adjoints.append(torch.linalg.solve(jacobian.T, -weight))
    z = torch.stack(roots)
    pulled = (torch.stack(adjoints) * total(z, x)).sum()
    return z, torch.autograd.grad(pulled, [x, *total.parameters()])


# --- one equilibrium ---------------------------------------------------------------------------------------------


@by_case
def test_transform_vanishes_at_the_equilibrium(method, alpha):
    total, x = problem()
    z = deep(method, total, alpha)(x)
    torch.testing.assert_close(total(z, x), torch.zeros_like(z), rtol=0, atol=1e-10)


@by_case
def test_equilibrium_is_that_of_scipy(method, alpha):
    total, x = problem()
    torch.testing.assert_close(deep(method, total, alpha)(x), dense_reference(total, x)[0], rtol=0, atol=1e-10)


@by_case
def test_gradient_is_that_of_dense_algebra(method, alpha):
    total, x = problem()
    computed = gradients(deep(method, total, alpha)(x), total, x)
    torch.testing.assert_close(computed, dense_reference(total, x)[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("method", "alpha"),
    [(GradientDescent(), 1.0), (Nesterov(0.3), 1.0), (ProximalGradient(), 0.0), (FISTA(0.3), 0.5)],
    ids=lambda value: repr(value),
)
def test_long_tied_unrolling_reaches_value_and_gradient(method, alpha):
    total, x = problem()
    layers = [transform_for(method, total)] * 100
    unrolled = exactly(OptDNN(method, layers, alpha=alpha, rtol=1e-12, gradient=GRADIENT))(torch.zeros(3, WIDTH), x)
    equilibrium = deep(method, total, alpha)(x)
    torch.testing.assert_close(unrolled, equilibrium, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients(unrolled, total, x), gradients(equilibrium, total, x), rtol=1e-8, atol=1e-8)


@by_case
def test_steps_of_the_cell_are_the_layers_of_a_tied_network(method, alpha):
    total, x = problem()
    z = torch.randn(3, WIDTH)
    net = deep(method, total, alpha)
    state = (z, z) if isinstance(method, Nesterov) else z
    for _ in range(4):
        state = net.equilibrium.cell(state, x)
    output = state[0] if isinstance(method, Nesterov) else state
    layers = exactly(OptDNN(method, [transform_for(method, total)] * 4, alpha=alpha, rtol=1e-12))
    torch.testing.assert_close(output, layers(z, x), rtol=0, atol=1e-10)


# --- starts ------------------------------------------------------------------------------------------------------


def test_solution_holds_every_stream_and_warm_starts_a_solve():
    total, x = problem()
    net = deep(Nesterov(0.3), total, 1.0)
    solution = net.solve(x).check()
    z, previous = solution.value
    torch.testing.assert_close(z, previous, rtol=0, atol=1e-10)
    again = net.solve(x, z0=solution.value)
    assert (again.steps == 1).all()
    torch.testing.assert_close(net(x, z0=solution.value), z, rtol=0, atol=0)


def test_initial_makes_the_start():
    total, x = problem()
    net = deep(GradientDescent(), total, 1.0)
    net.initial = lambda x: 10 + x
    first = net.solve(x).trace[0]
    start = 10 + x.detach()
    image = start + total(start, x)
    torch.testing.assert_close(first, ((image - start).norm(dim=1) / image.norm(dim=1)).detach())
    torch.testing.assert_close(net(x), deep(GradientDescent(), total, 1.0)(x), rtol=0, atol=1e-10)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name"), [("nesterov", "Nesterov"), (Nesterov(), "Nesterov"), ("fista", "FISTA"), (FISTA(), "FISTA")]
)
def test_schedule_is_refused_and_the_remedy_named(method, name):
    with pytest.raises(ValueError, match=rf"{name}: momentum changes.*needs constants: {name}\(momentum=0.5\)"):
        OptDEQ(method, transform_for(FISTA() if name == "FISTA" else Nesterov(), problem()[0]))


def test_explicit_method_refuses_alpha():
    with pytest.raises(ValueError, match=r"explicit method, but alpha=0\.5"):
        OptDEQ("gd", problem()[0], alpha=0.5)
