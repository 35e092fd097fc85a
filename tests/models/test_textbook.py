"""Fed the gradient step of a known function, every further row of the table is its textbook algorithm."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from sklearn.linear_model import ElasticNet
from torch import nn

from models import (
    AGD3,
    APG2,
    DenselyConnected,
    GradientDescent,
    HeavyBall,
    Learned,
    LinearizedADMM,
    Nesterov,
    OptDNN,
    PrimalDual,
)

from .problems import (
    CURVATURE,
    DEPTH,
    LABELS,
    ROWS,
    START,
    WIDTH,
    A,
    Step,
    by_problem,
    least_squares,
    log_cosh,
    logistic,
    minimiser,
)

STEEPEST = max(CURVATURE.values())


def run(method, layers):
    return OptDNN(method, layers)(torch.tensor(START)).detach().cpu().numpy()


def follows(method, layers, iterates, tolerance=1e-12):
    for depth, expected in enumerate(iterates, 1):
        np.testing.assert_allclose(run(method, layers[:depth]), expected, rtol=0, atol=tolerance)


# --- iterate by iterate ------------------------------------------------------------------------------------------

SIZES = np.linspace(0.5, 1.0, DEPTH) / STEEPEST


def layers_of(gradient):
    return [Step(gradient, s) for s in SIZES]


@by_problem
@pytest.mark.parametrize("momentum", [0.7, lambda k: k / (k + 4)], ids=["constant", "scheduled"])
def test_heavy_ball(momentum, gradient):
    z, before, iterates = START, START, []
    for k in range(DEPTH):
        beta = momentum(k) if callable(momentum) else momentum
        z, before = z - SIZES[k] * gradient(z) + beta * (z - before), z
        iterates.append(z)
    follows(HeavyBall(momentum), layers_of(gradient), iterates)


@by_problem
def test_apg2_is_accelerated_gradient_descent_in_multistep_form(gradient):
    y, moved_before, iterates = START, START, []
    for k in range(DEPTH):
        moved = y - SIZES[k] * gradient(y)
        iterates.append(moved)
        m = (k + 1) / (k + 4)
        y = (1 + m) * moved - m * moved_before
        moved_before = moved
    follows("apg2", layers_of(gradient), iterates)


@by_problem
def test_agd3_is_nesterovs_three_sequences(gradient):
    z, v, iterates = START, START, []
    for k in range(DEPTH):
        theta = 2 / (k + 2)
        y = (1 - theta) * z + theta * v
        v = v - SIZES[k] / theta * gradient(y)
        z = (1 - theta) * z + theta * v
        iterates.append(z)
    follows("agd3", layers_of(gradient), iterates)


@by_problem
def test_dense_with_given_coefficients_is_the_multistep_method_they_describe(gradient):
    def weights(k):
        shares = np.arange(1, k + 2) ** 2.0
        return tuple((shares / shares.sum()).tolist())

    def gains(k):
        return tuple((1.5 if i == k else -0.5 if i == k - 1 else 0.0) for i in range(k + 1))  # Adams and Bashforth's

    states, slopes, iterates = [START], [], []
    for k in range(DEPTH):
        slopes.append(-SIZES[k] * gradient(states[k]))
        states.append(
            sum(a * z for a, z in zip(weights(k), states)) + sum(b * slope for b, slope in zip(gains(k), slopes))
        )
        iterates.append(states[-1])
    follows(DenselyConnected(weights, gains), layers_of(gradient), iterates)


@by_problem
def test_ladmm_is_linearised_admm(gradient):
    eta, beta = 0.02, 3.0
    x, y, multiplier, iterates = START, START, np.zeros_like(START), []
    for _ in range(DEPTH):
        x = x - eta * (gradient(x) + multiplier + beta * (x - y))
        y = y - eta * (log_cosh(y) - multiplier - beta * (x - y))
        multiplier = multiplier + beta * (x - y)
        iterates.append(x)
    layers = [(Step(gradient, eta), Step(log_cosh, eta))] * DEPTH
    follows(LinearizedADMM(eta=eta, coupling=eta * beta), layers, iterates)


@by_problem
def test_pdhg_is_chambolle_and_pocks(gradient):
    tau, sigma = 0.02, 4.0
    x, dual, iterates = START, np.zeros_like(START), []
    for _ in range(DEPTH):
        following = x - tau * (gradient(x) + dual)
        dual = dual + sigma * (2 * following - x) - sigma * log_cosh(dual)
        x = following
        iterates.append(x)
    layers = [(Step(gradient, tau), Step(log_cosh, sigma))] * DEPTH
    follows(PrimalDual(tau=tau, coupling=tau * sigma), layers, iterates)


@pytest.mark.parametrize("step", [0.3, lambda k: 1 / (k + 2), Learned(0.3)], ids=["fixed", "scheduled", "learned"])
def test_a_step_size_scales_the_transform(step):
    z, iterates = START, []
    for k in range(DEPTH):
        size = step.initial if isinstance(step, Learned) else step(k) if callable(step) else step
        z = z - size * SIZES[k] * logistic(z)
        iterates.append(z)
    follows(GradientDescent(step=step), layers_of(logistic), iterates, 1e-6 if isinstance(step, Learned) else 1e-12)


# --- limits ------------------------------------------------------------------------------------------------------


@by_problem
@pytest.mark.parametrize("method", [HeavyBall(0.5), APG2(0.5), AGD3(), Nesterov(0.5)], ids=repr)
def test_long_networks_reach_the_minimiser_of_scikit_learn(method, gradient):
    limit = run(method, [Step(gradient, 1 / STEEPEST)] * 1500)
    np.testing.assert_allclose(limit, np.tile(minimiser(gradient), (ROWS, 1)), rtol=0, atol=1e-6)


def regularised_minimiser(gradient):
    """Of f plus Σ log cosh(Bz), by SciPy."""
    root = scipy.optimize.root(lambda z: gradient(z) + log_cosh(z), np.zeros(WIDTH), tol=1e-13)
    assert np.abs(root.fun).max() < 1e-10
    return root.x


@by_problem
def test_ladmm_reaches_the_minimiser_of_a_sum(gradient):
    eta = 0.5 / STEEPEST
    layers = [(Step(gradient, eta), Step(log_cosh, eta))] * 3000
    limit = run(LinearizedADMM(eta=eta, coupling=0.5), layers)
    np.testing.assert_allclose(limit, np.tile(regularised_minimiser(gradient), (ROWS, 1)), rtol=0, atol=1e-6)


class DualStep(nn.Module):
    """`−σ∇g*(u)` for `g = ½c‖x‖²`, whose conjugate is `‖u‖²/2c`."""

    def __init__(self, sigma, c):
        super().__init__()
        self.factor = sigma / c

    def forward(self, u):
        return -self.factor * u


@by_problem
def test_pdhg_reaches_the_minimiser_of_a_sum(gradient):
    c, tau, sigma = 2.0, 0.5 / STEEPEST, 1.0
    limit = run(PrimalDual(tau=tau, coupling=tau * sigma), [(Step(gradient, tau), DualStep(sigma, c))] * 3000)
    root = scipy.optimize.root(lambda z: gradient(z) + c * z, np.zeros(WIDTH), tol=1e-13).x
    np.testing.assert_allclose(limit, np.tile(root, (ROWS, 1)), rtol=0, atol=1e-6)


# --- rates -------------------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    def __init__(self, spectrum, s):
        super().__init__()
        self.spectrum, self.s = spectrum, s

    def forward(self, z):
        return -self.s * self.spectrum * z


SMALLEST, LARGEST = 1.0, 100.0
KAPPA = LARGEST / SMALLEST
ROOT = (KAPPA**0.5 - 1) / (KAPPA**0.5 + 1)


@pytest.mark.parametrize(
    ("method", "s", "rate"),
    [
        (GradientDescent(), 2 / (SMALLEST + LARGEST), (KAPPA - 1) / (KAPPA + 1)),
        (GradientDescent(), 1 / LARGEST, 1 - 1 / KAPPA),
        (HeavyBall(ROOT**2), 4 / (LARGEST**0.5 + SMALLEST**0.5) ** 2, ROOT),
        (Nesterov(ROOT), 1 / LARGEST, 1 - KAPPA**-0.5),
        (APG2(ROOT), 1 / LARGEST, 1 - KAPPA**-0.5),
    ],
    ids=["gd, best step", "gd, 1/L", "heavy_ball", "nesterov", "apg2"],
)
def test_rates_on_a_quadratic_are_those_of_theory(method, s, rate):
    spectrum = torch.linspace(SMALLEST, LARGEST, 12)
    lengths = []
    for depth in (100, 140):
        net = OptDNN(method, [Quadratic(spectrum, s)] * depth)
        lengths.append(net(torch.ones(1, 12)).norm().item())
    observed = (lengths[1] / lengths[0]) ** (1 / 40)
    double_root = (140 / 100) ** (1 / 40) if not isinstance(method, GradientDescent) else 1.0  # k·rate^k
    assert observed == pytest.approx(rate * double_root, rel=4e-3)


# --- composite problems ------------------------------------------------------------------------------------------


class ElasticNetStep(nn.Module):
    """`prox(y − s∇f(y)) − y` for `f = ‖Az − b‖²/2n` and the prox of `s(λ₁‖z‖₁ + ½λ₂‖z‖²)`: one transform."""

    def __init__(self, s, l1, l2):
        super().__init__()
        self.s, self.l1, self.l2 = s, l1, l2
        self.matrix, self.labels = torch.tensor(A), torch.tensor(LABELS)

    def forward(self, y):
        moved = y - self.s * (y @ self.matrix.T - self.labels) @ self.matrix / len(self.labels)
        return nn.functional.softshrink(moved, self.s * self.l1) / (1 + self.s * self.l2) - y


@pytest.mark.parametrize("method", ["gd", "nesterov", HeavyBall(0.3), AGD3()], ids=str)
def test_elastic_net_by_its_proximal_operator_reaches_scikit_learns(method):
    l1, l2 = 0.1, 0.05
    model = ElasticNet(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), fit_intercept=False, tol=1e-12, max_iter=100_000)
    expected = model.fit(A, LABELS).coef_
    assert (expected == 0).any()
    step = ElasticNetStep(len(LABELS) / np.linalg.norm(A, 2) ** 2, l1, l2)
    limit = run(method, [step] * 1500)
    np.testing.assert_allclose(limit, np.tile(expected, (ROWS, 1)), rtol=0, atol=1e-7)


HUBER, KINK = 2.0, 0.3


class HuberStep(nn.Module):
    """`−s∇g` for `g = λ Σ huber(z)`, quadratic within the kink."""

    def __init__(self, s):
        super().__init__()
        self.s = s

    def forward(self, z):
        return -self.s * HUBER * (z / KINK).clamp(-1, 1)


@by_problem
@pytest.mark.parametrize("method", ["pgd", "fista"])
def test_huber_regularisation_by_proximal_steps_reaches_scipys_minimum(method, gradient):
    def loss(z):
        if gradient is least_squares:
            smooth = ((A @ z - LABELS) ** 2).sum() / 2
        else:
            smooth = np.logaddexp(0, -LABELS * (A @ z)).sum()
        return smooth + (z**2).sum() / 2 + HUBER / KINK * scipy.special.huber(KINK, z).sum()

    def slope(z):
        return gradient(z) + HUBER * np.clip(z / KINK, -1, 1)

    expected = scipy.optimize.minimize(loss, np.zeros(WIDTH), jac=slope, method="BFGS", options={"gtol": 1e-10}).x
    s = 1 / STEEPEST
    net = OptDNN(method, [(Step(gradient, s), HuberStep(s))] * 400, alpha=0.0, rtol=1e-10)
    limit = net(torch.tensor(START)).detach().cpu().numpy()
    np.testing.assert_allclose(limit, np.tile(expected, (ROWS, 1)), rtol=0, atol=1e-6)
