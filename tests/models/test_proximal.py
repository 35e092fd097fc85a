"""The proximal step solves its equation, whatever alpha, and can be differentiated."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from torch import nn

from implicit import ImplicitGradient, record
from models import ContractiveDense, Dense, MonotoneConv, MonotoneDense, OptDNN, ProximalStep
from solvers import Picard

WIDTH = 4


def build(alpha, smooth=True, activation=None, inputs=0):
    step = ProximalStep(
        Dense(WIDTH, 6, inputs=inputs, activation=nn.Tanh()) if smooth else None,
        ContractiveDense(WIDTH, 6, inputs=inputs) if inputs else MonotoneDense(WIDTH, 6, activation=activation),
        alpha=alpha,
        rtol=1e-13,
        gradient=ImplicitGradient(rtol=1e-12),
    )
    step.resolvent.atol = 0.0  # only rtol decides
    return step.eval()  # training would move the spectral norm between two looks at P


# --- the equation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_step_solves_its_equation(alpha, smooth):
    step, y = build(alpha, smooth), torch.randn(4, WIDTH)
    z = y + step(y)
    v = y + step.smooth(y) if smooth else y
    torch.testing.assert_close(z, v + step.proximal(alpha * y + (1 - alpha) * z), rtol=0, atol=1e-11)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_inputs_reach_both_parts(alpha):
    step, y, x = build(alpha, inputs=3), torch.randn(4, WIDTH), torch.randn(4, 3)
    z = y + step(y, x)
    expected = y + step.smooth(y, x) + step.proximal(alpha * y + (1 - alpha) * z, x)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("smooth", [True, False])
def test_alpha_1_is_the_explicit_form_and_solves_nothing(smooth):
    step, y = build(1.0, smooth), torch.randn(4, WIDTH)
    with record() as log:
        output = step(y)
    expected = step.proximal(y) + (step.smooth(y) if smooth else 0)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-14)
    assert not log.forward


# --- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_gradcheck_in_the_argument_and_every_parameter(alpha, smooth):
    step = build(alpha, smooth, activation=nn.Softplus())
    names = [name for name, _ in step.named_parameters()]

    def evaluate(y, *parameters):
        return torch.func.functional_call(step, dict(zip(names, parameters)), (y,))

    parameters = [parameter.detach().clone().requires_grad_() for parameter in step.parameters()]
    assert torch.autograd.gradcheck(evaluate, (torch.randn(2, WIDTH, requires_grad=True), *parameters))


@pytest.mark.parametrize("training", [True, False])
def test_every_parameter_gets_a_gradient(training):
    step = build(0.0).train(training)
    step(torch.randn(4, WIDTH)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in step.parameters())


# --- one set of parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_state_dict_fits_every_alpha(source, target):
    first, second = build(source), build(target)
    second.load_state_dict(first.state_dict())
    y = torch.randn(4, WIDTH)
    same = ProximalStep(first.smooth, first.proximal, alpha=target, rtol=1e-13)
    same.resolvent.atol = 0.0
    torch.testing.assert_close(second(y), same(y), rtol=0, atol=1e-12)


# --- a monotone P at any norm ------------------------------------------------------------------------------------


def monotone(norm, activation):
    transform = MonotoneDense(WIDTH, 12, lipschitz=None, activation=activation)
    with torch.no_grad():
        transform.linear.weight.mul_(norm / torch.linalg.matrix_norm(transform.linear.weight, 2))
        transform.linear.bias.normal_()
    return transform


def solve(transform, norm, v, z0):
    step = ProximalStep(None, transform, solver=Picard(damping=2 / (2 + norm**2)), rtol=1e-13)
    step.resolvent.atol = 0.0
    return step.resolvent.solve(v, v, z0=z0, max_steps=5000).check().value


by_norm = pytest.mark.parametrize("norm", [0.5, 3.0, 10.0])
by_activation = pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus()], ids=repr)


@by_activation
@by_norm
def test_solution_is_the_same_from_every_start(norm, activation):
    transform, v = monotone(norm, activation), torch.randn(1, WIDTH)
    starts = torch.cat((torch.zeros(1, WIDTH), 10 * torch.randn(6, WIDTH)))
    solutions = solve(transform, norm, v.expand_as(starts), starts)
    torch.testing.assert_close(solutions, solutions[:1].expand_as(starts), rtol=0, atol=1e-10)


@by_activation
@by_norm
def test_solution_agrees_with_scipy(norm, activation):
    transform, v = monotone(norm, activation), torch.randn(1, WIDTH)
    weight, bias, target = (t.detach().cpu().numpy() for t in (transform.linear.weight, transform.linear.bias, v[0]))
    sigma = {
        nn.ReLU: lambda h: np.maximum(h, 0),
        nn.Tanh: np.tanh,
        nn.Sigmoid: scipy.special.expit,
        nn.Softplus: lambda h: np.logaddexp(0, h),
    }[type(activation)]
    root = scipy.optimize.root(lambda z: z - target + weight.T @ sigma(weight @ z + bias), target, tol=1e-13)
    assert np.abs(root.fun).max() < 1e-12
    np.testing.assert_allclose(solve(transform, norm, v, v)[0].cpu().numpy(), root.x, rtol=0, atol=1e-10)


@by_activation
@by_norm
def test_residual_certifies_the_error(norm, activation):
    transform, v = monotone(norm, activation), torch.randn(1, WIDTH)
    solution = solve(transform, norm, v, v)
    guesses = solution + torch.logspace(-4, 2, 50)[:, None] * torch.randn(50, WIDTH)
    with torch.no_grad():
        residual = (v + transform(guesses) - guesses).norm(dim=1)
    error = (guesses - solution).norm(dim=1)
    assert (error <= residual * (1 + 1e-9) + 1e-10).all()


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.inf, math.nan])
def test_alpha_outside_the_unit_interval_is_refused(alpha):
    with pytest.raises(ValueError, match=rf"alpha={alpha} must lie in \[0, 1\]: 1 is explicit, 0 implicit"):
        ProximalStep(None, MonotoneDense(3, 4), alpha=alpha)


def test_the_documented_remedy_for_a_large_weight_can_be_followed():
    proximal = MonotoneDense(8, 16, lipschitz=None, activation=nn.Tanh())
    with torch.no_grad():
        proximal.linear.weight.mul_(10 / torch.linalg.matrix_norm(proximal.linear.weight, 2))
    net = OptDNN("ppa", [proximal], alpha=0.0, solver=Picard(damping=2 / 102), rtol=1e-6, atol=0.0, max_steps=5000)
    y = torch.randn(4, 8)
    z = net(y)
    torch.testing.assert_close(z, y + proximal(z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: ProximalStep(None, lambda z: -z), TypeError, "proximal is a function"),
        (lambda: ProximalStep(lambda z: z, nn.Identity()), TypeError, "smooth is a function"),
        (lambda: ProximalStep(None, nn.Identity(), alpha="0"), ValueError, "alpha='0' must lie in"),
        (lambda: ProximalStep(None, nn.Identity(), alpha=True), ValueError, "alpha=True must lie in"),
    ],
)
def test_what_is_no_module_or_number_is_refused(build, error, match):
    with pytest.raises(error, match=match):
        build()


@pytest.mark.parametrize("compact", [None, True, False])
def test_an_input_may_be_shared_by_the_batch(compact):
    class Shifted(nn.Module):
        def forward(self, z, shift):
            return -0.5 * z + shift

    y, shift = torch.randn(4, 3), torch.randn(3)
    z = OptDNN("ppa", [Shifted()], alpha=0.0, rtol=1e-12, atol=0.0, compact=compact)(y, shift)
    torch.testing.assert_close(z, (y + shift) / 1.5, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus()], ids=repr)
def test_monotone_steps_are_solved_at_weights_of_norm_10(kind, activation):
    torch.manual_seed(0)
    if kind == "dense":
        proximal, v = MonotoneDense(12, 16, lipschitz=None, activation=activation), torch.randn(32, 12)
        norm = torch.linalg.matrix_norm(proximal.linear.weight, 2)
    else:
        proximal, v = MonotoneConv(3, 4, lipschitz=None, activation=activation), torch.randn(32, 3, 6, 6)
        dirac = torch.eye(3 * 36).reshape(-1, 3, 6, 6)
        linear = torch.nn.functional.conv2d(dirac, proximal.linear.weight, padding=1).flatten(1)
        norm = torch.linalg.matrix_norm(linear, 2)
    with torch.no_grad():
        proximal.linear.weight.mul_(10 / norm)
    step = ProximalStep(None, proximal, rtol=1e-5, max_steps=200)
    with record() as log:
        z = v + step(v)
        z.square().sum().backward()
    assert log.forward[0].solution.converged.all(), log.forward[0].solution
    assert log.backward[0].solution.converged.all(), log.backward[0].solution
    residual = (v + proximal(z) - z).flatten(1).norm(dim=1)
    assert (residual <= 2e-5 * z.flatten(1).norm(dim=1) + 1e-6).all()
