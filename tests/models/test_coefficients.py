"""Coefficients: refused where they break a condition, learned within it."""

import copy
import math
import pickle
from dataclasses import dataclass

import pytest
import torch

from models import (
    AGD3,
    APG2,
    FISTA,
    METHODS,
    Dense,
    DenselyConnected,
    Fidelity,
    GradientDescent,
    HeavyBall,
    Learned,
    LinearizedADMM,
    Method,
    MonotoneDense,
    Nesterov,
    OptDEQ,
    OptDNN,
    PrimalDual,
    coefficient,
    parallel_evaluate,
)
from models.methods import FREE, MOMENTUM

WIDTH, DEPTH = 4, 5
LEARNED = {name: method.learned() for name, method in METHODS.items()}


def layer(method):
    if isinstance(method, LinearizedADMM | PrimalDual):
        return Dense(WIDTH, 6), Dense(WIDTH, 6)
    if isinstance(method, FISTA) or type(method).__name__ == "ProximalGradient":
        return Dense(WIDTH, 6), MonotoneDense(WIDTH, 6, lipschitz=None)  # a parametrized weight cannot be pickled
    return Dense(WIDTH, 6)


def network(method, depth=DEPTH):
    return OptDNN(method, [layer(method) for _ in range(depth)])


@pytest.mark.parametrize(
    ("make", "condition"),
    [
        (lambda bad: HeavyBall(bad), "momentum={} breaks the root condition"),
        (lambda bad: Nesterov(Learned(bad)), "momentum={} breaks the root condition"),
        (lambda bad: FISTA(bad), "momentum={} breaks the root condition"),
        (lambda bad: APG2(bad), "momentum={} breaks the root condition"),
        (lambda bad: AGD3(-bad), "theta=-{} breaks 0 < θ ≤ 1"),
        (lambda bad: AGD3(theta=bad), "theta={} breaks 0 < θ ≤ 1"),
        (lambda bad: LinearizedADMM(coupling=bad), "coupling={} breaks 0 < ηβ ≤ 1"),
        (lambda bad: LinearizedADMM(eta=-bad), "eta=-{} breaks 0 < value < ∞"),
        (lambda bad: PrimalDual(coupling=bad), "coupling={} breaks 0 < τσ ≤ 1"),
        (lambda bad: GradientDescent(step=-bad), "step=-{} breaks 0 < value < ∞"),
    ],
)
def test_a_value_that_breaks_its_condition_is_refused_when_the_method_is_made(make, condition):
    for bad in (1.5, math.inf):
        with pytest.raises(ValueError, match=condition.format(bad).replace(".", r"\.")):
            make(bad)


@pytest.mark.parametrize("bad", [math.nan, "0.5", True, 0.5j, None, (0.5,)])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="HeavyBall: momentum="):
        HeavyBall(bad)


@pytest.mark.parametrize("wrap", [lambda rule: rule, Learned])
def test_a_rule_is_checked_in_every_layer(wrap):
    method = HeavyBall(wrap(lambda k: 0.4 * k))
    network(method, depth=3)
    with pytest.raises(ValueError, match=r"momentum=1\.2\d* in layer 3 breaks the root condition"):
        network(method, depth=4)


def beyond(k):
    return (1.0,) if k == 0 else (*[0.0] * (k - 1), -1.0, 2.0)


@pytest.mark.parametrize("weights", [lambda k: (1.0,) * (k + 1), lambda k: (1.0,), beyond])
def test_dense_weights_that_are_not_convex_are_refused(weights):
    with pytest.raises(ValueError, match=r"DenselyConnected: weights=.* in layer 1 breaks the rule of k \+ 1 weights"):
        network(DenselyConnected(weights), depth=3)


def values(net, k):
    return {name: torch.as_tensor(value) for name, value in vars(net.coefficients.at(k)).items()}


@pytest.mark.parametrize("name", METHODS)
def test_learned_coefficients_start_where_the_fixed_ones_are(name):
    fixed, learned = network(METHODS[name]), network(LEARNED[name])
    for k in range(DEPTH):
        start = values(learned, k)
        for key, value in values(fixed, k).items():
            # at the end of its domain a parameter starts a little within
            torch.testing.assert_close(
                start[key].double(), value.double(), rtol=0, atol=2e-3 if key == "theta" else 1e-6
            )


@pytest.mark.parametrize("name", ["heavy_ball", "nesterov", "apg2", "agd3", "dense", "ladmm", "pdhg", "fista"])
def test_wherever_training_leads_the_conditions_hold(name):
    net = network(LEARNED[name])
    for fill in (lambda p: p.fill_(50.0), lambda p: p.fill_(-50.0), lambda p: p.normal_(0, 10)):
        with torch.no_grad():
            for parameter in net.coefficients.parameters():
                fill(parameter)
        for k in range(DEPTH):
            found = values(net, k)
            if "momentum" in found:
                assert found["momentum"].abs() <= 1
            for key in ("theta", "coupling"):
                if key in found:
                    assert 0 <= found[key] <= 1
            if "weights" in found:
                assert found["weights"].min() >= 0
                assert found["weights"].sum().item() == pytest.approx(1, abs=1e-6)
                assert len(found["weights"]) == k + 1


@pytest.mark.parametrize("name", ["heavy_ball", "nesterov", "apg2", "agd3", "dense", "ladmm", "pdhg", "fista"])
def test_learned_coefficients_get_gradients_and_travel(name):
    net, z = network(LEARNED[name]), torch.randn(3, WIDTH)
    output = net(z)
    output.square().sum().backward()
    parameters = list(net.coefficients.parameters())
    assert parameters
    assert any(parameter.grad.abs().sum() > 0 for parameter in parameters)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(twin(z), output, rtol=0, atol=0)
    other = network(LEARNED[name])
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(z), output, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("table", [METHODS, LEARNED], ids=["fixed", "learned"])
def test_as_many_sweeps_as_layers_are_the_serial_network_and_its_gradient(name, table):
    torch.manual_seed(0)
    net, z = network(table[name]).eval(), torch.randn(3, WIDTH)
    results = []
    for evaluate in (net, lambda z: parallel_evaluate(net, z, sweeps=DEPTH)):
        output = evaluate(z)
        net.zero_grad()
        output.square().sum().backward()
        gradients = {key: p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}
        results.append((output.detach(), gradients))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-11)
    for key, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("other", ["apg2", "agd3"])
def test_with_fixed_coefficients_apg2_agd3_and_nesterov_are_one_network(other):
    layers, z = [Dense(WIDTH, 6) for _ in range(9)], torch.randn(3, WIDTH)
    # agd3's θ_k = 2/(k + 2) is the momentum max(0, (k − 1)/(k + 2))
    same = Nesterov() if other == "apg2" else Nesterov(lambda k: max(0.0, (k - 1) / (k + 2)))
    torch.testing.assert_close(OptDNN(other, layers)(z), OptDNN(same, layers)(z), rtol=0, atol=1e-12)


class Contracting(torch.nn.Module):
    """T(z, x) = x + ½ tanh(Wz) − z, whose zero all single-transform methods share."""

    def __init__(self, share=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        weight = torch.randn(WIDTH, WIDTH, generator=generator)
        self.weight = torch.nn.Parameter(weight / torch.linalg.matrix_norm(weight, 2))
        self.share = share

    def forward(self, z, x):
        return self.share * (x + 0.5 * torch.tanh(z @ self.weight.T) - z)


@pytest.mark.parametrize(
    "method",
    [GradientDescent(), HeavyBall(0.4), Nesterov(0.4), APG2(0.4), AGD3(0.6), LinearizedADMM()],
    ids=lambda method: type(method).__name__,
)
def test_a_long_tied_network_reaches_the_shared_equilibrium_and_its_gradient(method):
    transform = (Contracting(0.3), Contracting(0.7)) if isinstance(method, LinearizedADMM) else Contracting()
    x = torch.randn(3, WIDTH)
    infinite = OptDEQ(method, transform, rtol=1e-11, atol=0.0, max_steps=400)
    reference = OptDEQ("gd", Contracting(), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(infinite(x), reference(x), rtol=0, atol=1e-8)
    unrolled = OptDNN(method, [transform] * 300)
    gradients = []
    for output in (infinite(x), unrolled(torch.zeros_like(x), x)):
        parameters = list(infinite.parameters())
        gradients.append((output.detach(), torch.autograd.grad(output.square().sum(), parameters)))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=0, atol=1e-8)
    for mine, long in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(mine, long, rtol=1e-3, atol=1e-3)


@dataclass(frozen=True)
class ThreePoint(Method):
    """`z⁺ = z + β(z − z₋) + γ(z₋ − z₋₋) + T(z)`."""

    beta: float = coefficient(0.5, MOMENTUM)
    gamma: float = coefficient(0.2, FREE)

    def start(self, z0):
        return z0, z0, z0

    def query(self, streams, c):
        return streams[0]

    def advance(self, streams, y, t, c):
        z, before, earlier = streams
        return z + c.beta * (z - before) + c.gamma * (before - earlier) + t, z, before


@dataclass(frozen=True)
class TwoPoint(Method):
    """`z⁺ = a z + b z₋ + T(z)`."""

    a: float = coefficient(1.0, FREE)
    b: float = coefficient(0.0, FREE)

    def start(self, z0):
        return z0, z0

    def query(self, streams, c):
        return streams[0]

    def advance(self, streams, y, t, c):
        return c.a * streams[0] + c.b * streams[1] + t, streams[0]


def test_a_method_of_ones_own_works_in_every_reading():
    x = torch.randn(3, WIDTH)
    layers = [Dense(WIDTH, 6) for _ in range(4)]
    for method in (ThreePoint(), ThreePoint().learned()):
        net = OptDNN(method, layers)
        z, before, earlier = x, x, x
        for module in layers:
            z, before, earlier = z + 0.5 * (z - before) + 0.2 * (before - earlier) + module(z), z, before
        torch.testing.assert_close(net(x), z, rtol=0, atol=1e-6)
        torch.testing.assert_close(parallel_evaluate(net, x, sweeps=4), net(x), rtol=0, atol=1e-11)
    infinite = OptDEQ(ThreePoint(), Contracting(), rtol=1e-10)
    torch.testing.assert_close(infinite(x), OptDEQ("gd", Contracting(), rtol=1e-10)(x), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "condition"),
    [
        (TwoPoint(0.9, 0.0), r"consistency Σ a = 1"),
        (TwoPoint(2.0, -1.0), r"root condition"),  # a double root at 1
        (TwoPoint(2.1, -1.1), r"root condition"),  # a root at 1.1
        (TwoPoint(0.0, 1.0), None),  # roots 1 and −1, both simple
        (ThreePoint(0.5, 0.6), r"root condition"),
    ],
)
def test_a_method_of_ones_own_must_be_consistent_and_zero_stable(method, condition):
    if condition is None:
        OptDNN(method, [Dense(WIDTH, 6)])
        return
    with pytest.raises(ValueError, match=condition):
        OptDNN(method, [Dense(WIDTH, 6)])
    with pytest.raises(ValueError, match=condition):
        OptDEQ(method, Fidelity())


def test_a_frozen_schedule_has_the_coefficients_of_one_layer():
    frozen = Nesterov().frozen(3)
    assert frozen == Nesterov(0.5)
    assert HeavyBall(0.3).frozen() == HeavyBall(0.3)
    assert AGD3().frozen(2).theta == 0.5


def test_networks_are_made_on_the_meta_device():
    with torch.device("meta"):
        net = network(APG2().learned())
    assert all(parameter.is_meta for parameter in net.parameters())


def test_a_network_with_learned_coefficients_compiles_in_one_graph():
    torch.compiler.reset()
    net, z = network(APG2().learned(), depth=2), torch.randn(3, WIDTH)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(z), net(z))
