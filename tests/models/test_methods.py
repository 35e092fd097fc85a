"""With the gradient step of a known function as its transform, every row of the table is the textbook algorithm."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from models import FISTA, METHODS, Dense, MonotoneDense, Nesterov, OptDNN, ProximalGradient, ProximalStep

from .problems import (
    CURVATURE,
    DEPTH,
    LARGEST,
    ROWS,
    START,
    WIDTH,
    Step,
    by_problem,
    least_squares,
    log_cosh,
    minimiser,
)


def exactly(net):
    for transform in net.transforms:
        transform.resolvent.atol = 0.0  # only rtol decides
    return net


def numbers(tensor):
    return tensor.detach().cpu().numpy()


def textbook(momentum, move, depth=DEPTH):
    """Iterates of `y = z + m_k (z − z₋)`, `z⁺ = move(y, k)`."""
    previous = z = START
    iterates = []
    for k in range(depth):
        y = z + momentum(k) * (z - previous)
        previous, z = z, move(y, k)
        iterates.append(z)
    return iterates


def schedule(k):
    return k / (k + 3)


MOMENTA = [
    pytest.param("gd", lambda k: 0.0, id="gd"),
    pytest.param("nesterov", schedule, id="nesterov"),
    pytest.param(Nesterov(0.6), lambda k: 0.6, id="nesterov 0.6"),
    pytest.param(Nesterov(-0.3), lambda k: -0.3, id="nesterov -0.3"),
]
COMPOSITE = [
    pytest.param("pgd", lambda k: 0.0, id="pgd"),
    pytest.param("fista", schedule, id="fista"),
    pytest.param(FISTA(0.5), lambda k: 0.5, id="fista 0.5"),
]


# --- iterate by iterate ------------------------------------------------------------------------------------------


@by_problem
@pytest.mark.parametrize(("method", "momentum"), MOMENTA)
def test_explicit_row_is_the_textbook_loop(method, momentum, gradient):
    sizes = np.linspace(0.5, 1.0, DEPTH) / CURVATURE[gradient]
    layers = [Step(gradient, s) for s in sizes]
    expected = textbook(momentum, lambda y, k: y - sizes[k] * gradient(y))
    for depth, iterate in enumerate(expected, 1):
        output = OptDNN(method, layers[:depth])(torch.tensor(START))
        np.testing.assert_allclose(numbers(output), iterate, rtol=0, atol=1e-12)


def resolvent(v, y, s, alpha):
    """The roots z of `z − v + s∇g(alpha·y + (1 − alpha)·z)`, row by row."""

    def solve(v, y):
        root = scipy.optimize.root(lambda z: z - v + s * log_cosh(alpha * y + (1 - alpha) * z), v, tol=1e-14)
        assert np.abs(root.fun).max() < 1e-12
        return root.x

    return np.stack([solve(*rows) for rows in zip(v, y)])


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(("method", "momentum"), COMPOSITE)
def test_composite_row_is_the_textbook_loop_with_a_proximal_operator(method, momentum, alpha):
    s, depth = 1 / LARGEST, 6
    layers = [(Step(least_squares, s), Step(log_cosh, 1.5))] * depth
    expected = textbook(momentum, lambda y, k: resolvent(y - s * least_squares(y), y, 1.5, alpha), depth)
    for count, iterate in enumerate(expected, 1):
        net = exactly(OptDNN(method, layers[:count], alpha=alpha, rtol=1e-13))
        np.testing.assert_allclose(numbers(net(torch.tensor(START))), iterate, rtol=0, atol=1e-11)


def test_ppa_is_the_proximal_point_method():
    net = exactly(OptDNN("ppa", [Step(log_cosh, 1.5)] * 6, alpha=0.0, rtol=1e-13))
    z = START
    for _ in range(6):
        z = resolvent(z, z, 1.5, 0.0)
    np.testing.assert_allclose(numbers(net(torch.tensor(START))), z, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("method", "momentum"), COMPOSITE)
def test_composite_row_at_alpha_1_is_explicit(method, momentum):
    s = 1 / LARGEST
    layers = [(Step(least_squares, s), Step(log_cosh, s))] * DEPTH
    expected = textbook(momentum, lambda y, k: y - s * least_squares(y) - s * log_cosh(y))
    for depth, iterate in enumerate(expected, 1):
        output = OptDNN(method, layers[:depth], alpha=1.0)(torch.tensor(START))
        np.testing.assert_allclose(numbers(output), iterate, rtol=0, atol=1e-12)


# --- rows that coincide ------------------------------------------------------------------------------------------


def test_ppa_at_alpha_1_is_gd():
    layers = [Dense(WIDTH, 7) for _ in range(4)]
    z = torch.randn(ROWS, WIDTH)
    torch.testing.assert_close(OptDNN("ppa", layers, alpha=1.0)(z), OptDNN("gd", layers)(z), rtol=0, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("composite", "single"), [("pgd", "gd"), ("fista", "nesterov"), (FISTA(0.5), Nesterov(0.5))])
def test_composite_row_is_its_single_row_with_proximal_steps(composite, single, alpha):
    pairs = [(Dense(WIDTH, 7), MonotoneDense(WIDTH, 7).eval()) for _ in range(4)]
    steps = [ProximalStep(*pair, alpha=alpha, rtol=1e-8) for pair in pairs]
    z = torch.randn(ROWS, WIDTH)
    expected = OptDNN(single, steps)(z)
    torch.testing.assert_close(OptDNN(composite, pairs, alpha=alpha, rtol=1e-8)(z), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_transform_in_every_place_ties_the_weights(method):
    def build(depth):
        pairs = ("pgd", "fista", "ladmm", "pdhg")
        layer = (Dense(3, 4), MonotoneDense(3, 4)) if method in pairs else MonotoneDense(3, 4)
        return sum(p.numel() for p in OptDNN(method, [layer] * depth).transforms.parameters())

    assert build(5) == build(1) > 0


# --- limits and rates --------------------------------------------------------------------------------------------


@by_problem
@pytest.mark.parametrize(("method", "momentum"), MOMENTA)
def test_long_run_reaches_the_minimiser_of_scikit_learn(method, momentum, gradient):
    net = OptDNN(method, [Step(gradient, 1 / CURVATURE[gradient])] * 600)
    expected = np.tile(minimiser(gradient), (ROWS, 1))
    np.testing.assert_allclose(numbers(net(torch.tensor(START))), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", ["pgd", FISTA(0.5)], ids=["pgd", "fista"])
def test_long_run_of_a_composite_row_reaches_the_minimiser_of_scipy(method, alpha):
    s = 1 / LARGEST
    net = exactly(OptDNN(method, [(Step(least_squares, s), Step(log_cosh, s))] * 150, alpha=alpha, rtol=1e-11))
    with torch.no_grad():
        output = net(torch.tensor(START))
    root = scipy.optimize.root(lambda z: least_squares(z) + log_cosh(z), np.zeros(WIDTH), tol=1e-13)
    np.testing.assert_allclose(numbers(output), np.tile(root.x, (ROWS, 1)), rtol=0, atol=1e-8)


SMALLEST_EIGENVALUE, LARGEST_EIGENVALUE = 0.2, 5.0
KAPPA = LARGEST_EIGENVALUE / SMALLEST_EIGENVALUE
ACCELERATION = (math.sqrt(KAPPA) - 1) / (math.sqrt(KAPPA) + 1)


@pytest.mark.parametrize(
    ("method", "s", "rate", "tolerance"),
    [
        pytest.param("gd", 2 / (LARGEST_EIGENVALUE + SMALLEST_EIGENVALUE), (KAPPA - 1) / (KAPPA + 1), 1e-6, id="best"),
        pytest.param("gd", 1 / LARGEST_EIGENVALUE, 1 - 1 / KAPPA, 1e-6, id="1/L"),
        # a double root: the error falls like k·rate^k
        pytest.param(Nesterov(ACCELERATION), 1 / LARGEST_EIGENVALUE, 1 - 1 / math.sqrt(KAPPA), 1e-2, id="nesterov"),
    ],
)
def test_rate_on_a_quadratic(method, s, rate, tolerance):
    basis, _ = torch.linalg.qr(torch.randn(8, 8))
    layer = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(-s * basis @ torch.linspace(SMALLEST_EIGENVALUE, LARGEST_EIGENVALUE, 8).diag() @ basis.T)
        z = torch.randn(1, 8)
        before, after = (OptDNN(method, [layer] * depth)(z).norm().item() for depth in (250, 251))
    assert after / before == pytest.approx(rate, rel=tolerance)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Nesterov, FISTA])
@pytest.mark.parametrize("momentum", [1.0, -1.0, 1, 1.5, math.inf, math.nan, "0.5", 0.5j])
def test_momentum_that_breaks_the_root_condition_is_refused(kind, momentum):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: momentum=.* breaks the root condition \|momentum\| < 1"):
        kind(momentum=momentum)


@pytest.mark.parametrize("method", ["gd", "nesterov"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_explicit_method_refuses_alpha(method, alpha):
    with pytest.raises(ValueError, match=rf"explicit method, but alpha={alpha} .*ppa, pgd, fista"):
        OptDNN(method, [Dense(3, 4)], alpha=alpha)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("method", ["ppa", "pgd", "fista"])
def test_alpha_outside_the_unit_interval_is_refused(method, alpha):
    layer = Dense(3, 4) if method == "ppa" else (Dense(3, 4), MonotoneDense(3, 4))
    with pytest.raises(ValueError, match=rf"alpha={alpha} must lie in \[0, 1\]"):
        OptDNN(method, [layer], alpha=alpha)


@pytest.mark.parametrize(
    ("method", "layer", "message"),
    [
        ("gd", (nn.Identity(), nn.Identity()), r"GradientDescent takes one module T\(z, \*inputs\).*a tuple of 2"),
        ("gd", torch.relu, "GradientDescent takes one module.*builtin"),
        ("nesterov", [nn.Identity()], "Nesterov takes one module.*a tuple of 1"),
        ("ppa", (nn.Identity(), nn.Identity()), r"ProximalPoint takes one module P\(z, \*inputs\).*a tuple of 2"),
        ("pgd", nn.Identity(), r"ProximalGradient takes a pair \(smooth, proximal\).*a Identity"),
        ("pgd", (nn.Identity(),) * 3, "ProximalGradient takes a pair.*a tuple of 3"),
        ("fista", (nn.Identity(), torch.relu), "FISTA takes a pair"),
        ("fista", None, "FISTA takes a pair.*NoneType"),
    ],
)
def test_wrong_kind_of_transform_is_refused(method, layer, message):
    with pytest.raises(TypeError, match=message):
        OptDNN(method, [layer])


@pytest.mark.parametrize("method", ["adam", "", None, 3, ProximalGradient])
def test_unknown_method_is_refused_with_the_list_of_known_ones(method):
    with pytest.raises(ValueError, match=r"unknown method .*gd, heavy_ball, nesterov, .*ppa, pgd, fista"):
        OptDNN(method, [nn.Identity()])


@pytest.mark.parametrize("transforms", [[], (), nn.ModuleList(), nn.Identity(), None])
def test_transforms_that_are_no_list_of_layers_are_refused(transforms):
    with pytest.raises(TypeError, match="non-empty list, one transform per layer"):
        OptDNN("gd", transforms)
