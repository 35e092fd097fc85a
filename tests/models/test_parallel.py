"""Parallel sweeps over depth: exact after as many sweeps as layers, for every row."""

import copy

import pytest
import torch
from torch import nn

from implicit import ImplicitGradient
from models import Dense, Fidelity, MonotoneDense, Nesterov, OptDNN, Parallel, ProximalStep, parallel_evaluate

WIDTH, DEPTH = 4, 5
TABLE = [("gd", 1.0), ("nesterov", 1.0), (Nesterov(0.5), 1.0)]
TABLE += [(method, alpha) for method in ("ppa", "pgd", "fista") for alpha in (0.0, 0.5, 1.0)]
by_row = pytest.mark.parametrize(("method", "alpha"), TABLE)


def build(method, alpha, depth=DEPTH):
    def layer():
        if method == "ppa":
            return MonotoneDense(WIDTH, 9)
        smooth = Dense(WIDTH, 9)
        return (smooth, MonotoneDense(WIDTH, 9)) if method in ("pgd", "fista") else smooth

    gradient = ImplicitGradient(rtol=1e-12)
    net = OptDNN(method, [layer() for _ in range(depth)], alpha=alpha, rtol=1e-13, gradient=gradient)
    for transform in net.transforms:
        if isinstance(transform, ProximalStep):
            transform.resolvent.atol = 0.0  # only rtol decides
    return net


def moved(net):
    """The weights after a large step of an optimiser, where power iteration has yet to catch up in training."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("original"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def gradients(output, net, z):
    return torch.autograd.grad(output.square().sum(), [z, *net.parameters()])


# --- exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@by_row
def test_as_many_sweeps_as_layers_equal_the_serial_network(method, alpha, training):
    net = moved(build(method, alpha)).train(training)
    twin = copy.deepcopy(net)  # training moves the buffers of the spectral norm
    z = torch.randn(3, WIDTH)
    torch.testing.assert_close(parallel_evaluate(twin, z, sweeps=DEPTH), net(z), rtol=0, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
@by_row
def test_gradients_of_as_many_sweeps_equal_the_serial_ones(method, alpha, training):
    net = moved(build(method, alpha)).train(training)
    twin = copy.deepcopy(net)
    z = torch.randn(3, WIDTH, requires_grad=True)
    serial = gradients(net(z), net, z)
    parallel = gradients(parallel_evaluate(twin, z, sweeps=DEPTH), twin, z)
    torch.testing.assert_close(parallel, serial, rtol=0, atol=1e-9)


@by_row
def test_a_sweep_makes_one_more_layer_exact(method, alpha):
    net = build(method, alpha).eval()
    queries = [[] for _ in net.transforms]
    for transform, seen in zip(net.transforms, queries):
        transform.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
    z = torch.randn(3, WIDTH)
    net(z)
    exact = [seen[0] for seen in queries]
    for k in range(DEPTH):
        parallel_evaluate(net, z, sweeps=k + 1)
        for layer in range(k + 1):
            torch.testing.assert_close(queries[layer][-1], exact[layer], rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["gd", "nesterov", Nesterov(0.5)])
def test_one_sweep_less_than_layers_is_not_exact(method):
    net, z = build(method, 1.0), torch.randn(3, WIDTH)
    assert (parallel_evaluate(net, z, sweeps=DEPTH - 1) - net(z)).abs().max() > 1e-8


@pytest.mark.parametrize("evaluate", [lambda net, z: net(z), lambda net, z: parallel_evaluate(net, z, sweeps=3)])
def test_an_evaluation_in_training_sees_one_weight(evaluate):
    net, z = moved(OptDNN("ppa", [MonotoneDense(WIDTH, 9)] * 3)), torch.randn(3, WIDTH)
    output = evaluate(net, z)
    # evaluation mode keeps the last weight: had it moved between layers or sweeps, the outputs would differ
    torch.testing.assert_close(evaluate(net.eval(), z), output, rtol=0, atol=1e-12)


def test_inputs_reach_the_transforms():
    net = OptDNN("gd", [Dense(WIDTH, 9, inputs=2) for _ in range(DEPTH)])
    z, x = torch.randn(3, WIDTH), torch.randn(3, 2)
    torch.testing.assert_close(parallel_evaluate(net, z, x, sweeps=DEPTH), net(z, x), rtol=0, atol=1e-12)


# --- one sweep ---------------------------------------------------------------------------------------------------


def test_one_sweep_of_gd_is_the_sum_of_branches():
    layers = [Dense(WIDTH, 9) for _ in range(DEPTH)]
    z = torch.randn(3, WIDTH)
    expected = z + sum(layer(z) for layer in layers)
    torch.testing.assert_close(parallel_evaluate(OptDNN("gd", layers), z, sweeps=1), expected, rtol=0, atol=1e-12)


def test_one_sweep_of_constant_momentum_weighs_the_branches():
    layers, m = [Dense(WIDTH, 9) for _ in range(DEPTH)], 0.5
    z = torch.randn(3, WIDTH)
    expected = z + sum((1 - m ** (DEPTH - k)) / (1 - m) * layer(z) for k, layer in enumerate(layers))
    output = parallel_evaluate(OptDNN(Nesterov(m), layers), z, sweeps=1)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


# --- overflow on a bad guess -------------------------------------------------------------------------------------


class Shrink(nn.Module):
    def forward(self, z):
        return 0.001 * z.sin() - z


class Exponential(nn.Module):
    def forward(self, z):
        return z.exp()


def overflowing(method):
    """Layers after the first overflow wherever they see z0 = 1000 instead of their own input."""
    return OptDNN(method, [Shrink(), Exponential(), Dense(WIDTH, 9), Exponential()])


@pytest.mark.parametrize("method", ["gd", Nesterov(0.001)], ids=["gd", "nesterov"])
def test_overflow_on_a_bad_guess_does_not_poison_the_result(method):
    net, z = overflowing(method), torch.full((2, WIDTH), 1000.0)
    assert not parallel_evaluate(net, z, sweeps=2).isfinite().all()
    serial = net(z)
    assert serial.isfinite().all()
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=4), serial, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["gd", Nesterov(0.001)], ids=["gd", "nesterov"])
def test_overflow_on_a_bad_guess_does_not_poison_the_gradient(method):
    net, z = overflowing(method), torch.full((2, WIDTH), 1000.0, requires_grad=True)
    parallel = gradients(parallel_evaluate(net, z, sweeps=4), net, z)
    torch.testing.assert_close(parallel, gradients(net(z), net, z), rtol=1e-11, atol=0)


# --- the module --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweeps", [1, 3, DEPTH])
def test_module_is_the_function(sweeps):
    net = OptDNN("nesterov", [Dense(WIDTH, 9, inputs=2) for _ in range(DEPTH)])
    z, x = torch.randn(3, WIDTH), torch.randn(3, 2)
    expected = parallel_evaluate(net, z, x, sweeps=sweeps)
    torch.testing.assert_close(Parallel(net, sweeps)(z, x), expected, rtol=0, atol=0)


def test_module_has_the_parameters_of_its_network():
    net = build("pgd", 0.0)
    assert [id(p) for p in Parallel(net).parameters()] == [id(p) for p in net.parameters()]


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweeps", [0, -1, DEPTH + 1, 1.0, True])
def test_sweeps_outside_the_depth_are_refused(sweeps):
    net = build("gd", 1.0)
    message = rf"sweeps={sweeps} must be an integer from 1 to the network's depth, {DEPTH}"
    with pytest.raises(ValueError, match=message):
        parallel_evaluate(net, torch.zeros(1, WIDTH), sweeps=sweeps)
    with pytest.raises(ValueError, match=message):
        Parallel(net, sweeps)


@pytest.mark.parametrize("net", [Fidelity(), nn.Sequential(Dense(WIDTH, 9)), [Dense(WIDTH, 9)]])
def test_what_is_no_optdnn_is_refused(net):
    with pytest.raises(TypeError, match=rf"net is a {type(net).__name__}: pass an OptDNN"):
        parallel_evaluate(net, torch.zeros(1, WIDTH), sweeps=1)
