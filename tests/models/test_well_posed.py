"""Transforms whose proximal step is well posed: their norms by dense algebra, their monotonicity, their refusals."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import ContractiveConv, ContractiveDense, MonotoneConv, MonotoneDense

SIZE = 5
LIPSCHITZ = 0.7
BUILDERS = {
    "ContractiveDense": (lambda: ContractiveDense(24, 40, lipschitz=LIPSCHITZ), (24,)),
    "ContractiveConv 1": (lambda: ContractiveConv(3, 8, lipschitz=LIPSCHITZ, kernel=1), (3, SIZE, SIZE)),
    "ContractiveConv 3": (lambda: ContractiveConv(3, 8, lipschitz=LIPSCHITZ), (3, SIZE, SIZE)),
    "ContractiveConv 5": (lambda: ContractiveConv(3, 8, lipschitz=LIPSCHITZ, kernel=5), (3, SIZE, SIZE)),
    "MonotoneDense": (lambda: MonotoneDense(24, 40, lipschitz=LIPSCHITZ), (24,)),
    "MonotoneDense square": (lambda: MonotoneDense(40, 40, lipschitz=LIPSCHITZ), (40,)),
    "MonotoneConv 1": (lambda: MonotoneConv(3, 8, lipschitz=LIPSCHITZ, kernel=1), (3, SIZE, SIZE)),
    "MonotoneConv 3": (lambda: MonotoneConv(3, 8, lipschitz=LIPSCHITZ), (3, SIZE, SIZE)),
    "MonotoneConv 5": (lambda: MonotoneConv(3, 8, lipschitz=LIPSCHITZ, kernel=5), (3, SIZE, SIZE)),
}
by_builder = pytest.mark.parametrize("name", BUILDERS)
ACTIVATIONS = [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus()]
by_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)


def bias_of(transform):
    return transform.bias if hasattr(transform, "bias") else transform.linear.bias


def jacobian(transform, z):
    """(dim, dim) at one point z without a batch."""
    matrix = torch.autograd.functional.jacobian(lambda z: transform(z[None])[0], z)
    return matrix.reshape(z.numel(), z.numel()).cpu().numpy()


def largest_norm(transform, shape):
    """Of the Jacobian with every ReLU open, which bounds the others, and at random points."""
    with torch.no_grad():
        bias = bias_of(transform).clone()
        bias_of(transform).fill_(1e4)
        opened = np.linalg.norm(jacobian(transform, torch.randn(shape)), 2)
        bias_of(transform).copy_(bias)
    return opened, max(np.linalg.norm(jacobian(transform, torch.randn(shape)), 2) for _ in range(3))


def replace_weights(transform):
    with torch.no_grad():
        for name, parameter in transform.named_parameters():
            if name.endswith("original"):
                parameter.copy_(3 * torch.randn_like(parameter))


# --- Lipschitz bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@by_builder
def test_bound_holds_at_construction(name, seed):
    torch.manual_seed(seed)
    build, shape = BUILDERS[name]
    assert max(largest_norm(build().eval(), shape)) <= 1.02 * LIPSCHITZ


@pytest.mark.parametrize("seed", range(3))
@by_builder
def test_bound_holds_for_changed_weights_after_evaluations_in_training(name, seed):
    torch.manual_seed(seed)
    build, shape = BUILDERS[name]
    transform = build()
    replace_weights(transform)
    for _ in range(25):
        transform(torch.randn(1, *shape))
    assert max(largest_norm(transform.eval(), shape)) <= 1.02 * LIPSCHITZ


@pytest.mark.parametrize("name", ["MonotoneDense", "MonotoneDense square", "MonotoneConv 1"])
def test_bound_is_attained_where_the_norm_is_exact(name):
    build, shape = BUILDERS[name]
    assert largest_norm(build().eval(), shape)[0] == pytest.approx(LIPSCHITZ, rel=0.02)


def test_factors_of_the_contractive_form_have_norm_one():
    transform = ContractiveDense(24, 40).eval()
    norms = [torch.linalg.matrix_norm(linear.weight, 2).item() for linear in (transform.inner, transform.outer)]
    assert norms == pytest.approx([1.0, 1.0], rel=0.02)


# --- formulas ----------------------------------------------------------------------------------------------------


def dense_convolution(kernel):
    """The matrix of a zero-padded cross-correlation on SIZE × SIZE images."""
    outputs, inputs, k, _ = kernel.shape
    matrix = np.zeros((outputs, SIZE, SIZE, inputs, SIZE, SIZE))
    for row, column, i, j in itertools.product(range(SIZE), range(SIZE), range(k), range(k)):
        source = row + i - k // 2, column + j - k // 2
        if all(0 <= place < SIZE for place in source):
            matrix[:, row, column, :, source[0], source[1]] = kernel[:, :, i, j]
    return matrix.reshape(outputs * SIZE**2, inputs * SIZE**2)


def numbers(tensor):
    return tensor.detach().cpu().numpy()


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_contractive_convolution_is_its_dense_formula(kernel):
    transform = ContractiveConv(3, 8, inputs=2, lipschitz=LIPSCHITZ, kernel=kernel).eval()
    nn.init.normal_(transform.bias)
    z, x = torch.randn(2, 3, SIZE, SIZE), torch.randn(2, 2, SIZE, SIZE)
    inner = dense_convolution(numbers(transform.inner.weight)) / kernel
    outer, injection = (dense_convolution(numbers(part.weight)) for part in (transform.outer, transform.injection))
    hidden = numbers(z.flatten(1)) @ inner.T + numbers(x.flatten(1)) @ injection.T
    hidden += np.repeat(numbers(transform.bias), SIZE**2)
    expected = LIPSCHITZ * np.maximum(hidden, 0) @ outer.T
    np.testing.assert_allclose(numbers(transform(z, x).flatten(1)), expected, rtol=0, atol=1e-12)


def test_contractive_dense_is_its_formula():
    transform = ContractiveDense(4, 6, inputs=2, lipschitz=LIPSCHITZ).eval()
    nn.init.normal_(transform.bias)
    z, x = torch.randn(3, 4), torch.randn(3, 2)
    hidden = numbers(z) @ numbers(transform.inner.weight).T + numbers(x) @ numbers(transform.injection.weight).T
    expected = LIPSCHITZ * np.maximum(hidden + numbers(transform.bias), 0) @ numbers(transform.outer.weight).T
    np.testing.assert_allclose(numbers(transform(z, x)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lipschitz", [None, LIPSCHITZ])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_monotone_convolution_is_its_dense_formula(kernel, lipschitz):
    transform = MonotoneConv(3, 8, lipschitz=lipschitz, kernel=kernel).eval()
    z = torch.randn(2, 3, SIZE, SIZE)
    scale = 1.0 if lipschitz is None else math.sqrt(lipschitz) / kernel
    matrix = scale * dense_convolution(numbers(transform.linear.weight))
    bias = np.repeat(numbers(transform.linear.bias), SIZE**2)
    expected = -np.maximum(numbers(z.flatten(1)) @ matrix.T + bias, 0) @ matrix
    np.testing.assert_allclose(numbers(transform(z).flatten(1)), expected, rtol=0, atol=1e-12)


# --- monotonicity ------------------------------------------------------------------------------------------------


def monotone(kind, lipschitz, activation):
    if kind == "dense":
        return MonotoneDense(6, 9, lipschitz=lipschitz, activation=activation), (6,)
    return MonotoneConv(2, 5, lipschitz=lipschitz, activation=activation), (2, SIZE, SIZE)


POTENTIALS = {  # antiderivatives of the activations
    nn.ReLU: lambda h: h.relu().square() / 2,
    nn.Tanh: lambda h: h.cosh().log(),
    nn.Sigmoid: F.softplus,
}


@by_activation
@pytest.mark.parametrize("lipschitz", [None, 0.9])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_negative_transform_is_monotone(kind, lipschitz, activation):
    transform, shape = monotone(kind, lipschitz, activation)
    transform.eval()
    if lipschitz is None:
        nn.init.normal_(transform.linear.weight, std=3.0)
    x = 3 * torch.randn(200, *shape)
    y = x + torch.logspace(-3, 1, 200).view(-1, *[1] * len(shape)) * torch.randn(200, *shape)
    with torch.no_grad():
        products = ((transform(x) - transform(y)) * (x - y)).flatten(1).sum(dim=1)
    assert (products <= 1e-10).all()
    assert (products < 0).any()


@by_activation
@pytest.mark.parametrize("lipschitz", [None, 0.9])
def test_jacobian_of_the_monotone_convolution_is_symmetric(lipschitz, activation):
    transform, shape = monotone("conv", lipschitz, activation)
    matrix = jacobian(transform.eval(), torch.randn(shape))
    assert np.abs(matrix).max() > 1e-3
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS[:3], ids=repr)
def test_monotone_convolution_is_the_negative_gradient_of_its_potential(activation):
    transform, shape = monotone("conv", None, activation)
    z = torch.randn(2, *shape, requires_grad=True)
    hidden = F.conv2d(z, transform.linear.weight, transform.linear.bias, padding=1)
    (gradient,) = torch.autograd.grad(POTENTIALS[type(activation)](hidden).sum(), z)
    torch.testing.assert_close(transform(z), -gradient, rtol=0, atol=1e-12)


# --- inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "z", "x"),
    [
        (lambda: ContractiveDense(4, 6, inputs=2), (3, 4), (3, 2)),
        (lambda: ContractiveConv(4, 6, inputs=2), (3, 4, SIZE, SIZE), (3, 2, SIZE, SIZE)),
    ],
    ids=["dense", "conv"],
)
def test_injection_needs_exactly_one_input(transform, z, x):
    transform, z, x = transform(), torch.randn(z), torch.randn(x)
    assert transform(z, x).shape == z.shape
    for inputs in [(), (x, x)]:
        with pytest.raises(TypeError, match=rf"call it as T\(z, x\), not with {len(inputs)} inputs"):
            transform(z, *inputs)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(-1.0), nn.ELU()], ids=repr)
@pytest.mark.parametrize("kind", [MonotoneDense, MonotoneConv])
def test_activation_not_known_to_be_monotone_is_refused(kind, activation):
    message = rf"activation {type(activation).__name__} is not known.*ReLU, Tanh, Sigmoid, Softplus"
    with pytest.raises(ValueError, match=message):
        kind(3, 4, activation=activation)


@pytest.mark.parametrize("lipschitz", [0.0, 1.0, -0.5, 2, math.nan])
@pytest.mark.parametrize("kind", [ContractiveDense, ContractiveConv, MonotoneDense, MonotoneConv])
def test_lipschitz_outside_the_open_unit_interval_is_refused(kind, lipschitz):
    with pytest.raises(ValueError, match=rf"lipschitz={lipschitz} must lie in \(0, 1\)"):
        kind(3, 4, lipschitz=lipschitz)


@pytest.mark.parametrize("kernel", [2, 4, 0, -1])
@pytest.mark.parametrize("kind", [ContractiveConv, MonotoneConv])
def test_kernel_that_is_not_odd_is_refused(kind, kernel):
    with pytest.raises(ValueError, match=rf"kernel={kernel} must be odd"):
        kind(3, 4, kernel=kernel)
