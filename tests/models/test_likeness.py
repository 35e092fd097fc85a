"""Which layers are evaluated as one, and what becomes of those that are not."""

import copy
from collections import defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from models import Dense, OptDNN, UnlikeError, parallel_evaluate
from models.parallel.stack import Stack
from solvers import Solution

BATCH, WIDTH, DEPTH = 5, 6, 16
OPTIONS = [{"sweeps": DEPTH}, {"rtol": 1e-11}]
by_options = pytest.mark.parametrize("options", OPTIONS, ids=["sweeps", "tolerance"])


class Scaled(nn.Module):
    """Reads whatever attributes it has."""

    scale = 1.0
    gate = None
    gates = ()

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, z):
        found = torch.tanh(self.linear(z)) * self.scale
        for each in self.gates:
            found = found * each["one"][0]
        return found if self.gate is None else found * self.gate


def scaled_later(net):
    net.transforms[3].scale = -2.0


def without_what_the_class_has(net):
    net.transforms[0].gate = None
    for transform in net.transforms:
        type(transform).gate = 0.5


def other_forward(net):
    transform = net.transforms[5]
    transform.forward = lambda z: -torch.tanh(transform.linear(z))


def gates_with_a_graph(net):
    net.gates = nn.ParameterList([torch.ones(WIDTH) for _ in net.transforms])
    for gate, transform in zip(net.gates, net.transforms, strict=True):
        transform.gate = gate * 1.0


def leaves(net):
    for transform in net.transforms:
        transform.gate = torch.ones(WIDTH, requires_grad=True)


def in_lists(net):
    net.gates = nn.ParameterList([torch.ones(1) for _ in net.transforms])
    for gate, transform in zip(net.gates, net.transforms, strict=True):
        transform.gates = [{"one": (gate * 1.0,)}]


def other_dtypes(net):
    for number, transform in enumerate(net.transforms):
        transform.gate = torch.tensor(2.0) if number % 2 else torch.tensor(2)


CHANGES = [scaled_later, without_what_the_class_has, other_forward, gates_with_a_graph, leaves, in_lists, other_dtypes]


@pytest.fixture(autouse=True)
def as_before():
    yield
    Scaled.gate = None


@pytest.mark.parametrize("change", CHANGES)
@by_options
def test_layers_that_differ_in_anything_are_no_copies(change, options):
    net, z = OptDNN("gd", [Scaled() for _ in range(DEPTH)]), torch.randn(BATCH, WIDTH)
    change(net)
    gates = [each.gate for each in net.transforms if isinstance(each.gate, torch.Tensor) and each.gate.requires_grad]
    found, expected = parallel_evaluate(net, z, **options), net(z)
    found = found.value if isinstance(found, Solution) else found
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    leaves = [*net.parameters(), *(gate for gate in gates if gate.is_leaf)]
    slopes = [
        torch.autograd.grad(each.sum(), leaves, retain_graph=True, allow_unused=True) for each in (found, expected)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-9)
    with pytest.raises(UnlikeError, match="differ"):
        parallel_evaluate(net, z, **options, batched=True)


@pytest.mark.parametrize("held", ["_modules", "_parameters"])
def test_parts_that_are_renamed_are_noticed(held):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.shift, self.factor = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

        def forward(self, z):
            return torch.tanh(self.one(torch.tanh(self.two(z)))) * self.factor + self.shift

    net, z = OptDNN("gd", [Two() for _ in range(DEPTH)]), torch.randn(BATCH, WIDTH)
    parallel_evaluate(net, z, sweeps=DEPTH)
    parts = getattr(net.transforms[3], held)
    (first, one), (second, two) = parts.items()
    parts.clear()
    parts.update({second: one, first: two})  # the same objects in the same order
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), net(z))


def test_parts_that_move_from_one_container_to_another_are_noticed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.ModuleDict({"x": nn.Linear(WIDTH, WIDTH), "y": nn.Linear(WIDTH, WIDTH)})
            self.second = nn.ModuleDict()

        def forward(self, z):
            for part in self.first.values():
                z = torch.tanh(part(z))
            for part in self.second.values():
                z = torch.sin(3 * part(z))
            return z

    net, z = OptDNN("gd", [Two() for _ in range(DEPTH)]), torch.randn(BATCH, WIDTH)
    parallel_evaluate(net, z, sweeps=DEPTH)
    net.transforms[7].second["y"] = net.transforms[7].first.pop("y")
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), net(z))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.InstanceNorm1d(3),
        lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        lambda: Dense(WIDTH, 8),
        lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    ],
    ids=["instance normalisation", "weight norm", "dense", "without bias"],
)
def test_layers_in_training_that_are_alike_are_taken_as_one(make):
    net, z = OptDNN("gd", [make() for _ in range(4)]).train(), torch.randn(BATCH, 3, WIDTH)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=4, batched=True), net(z))


# --- what torch.vmap does not support -----------------------------------------------------------------------------


class Each(nn.Module):
    """A linear layer, and an operation."""

    def __init__(self, operation):
        super().__init__()
        self.linear, self.operation = nn.Linear(WIDTH, WIDTH), operation

    def forward(self, z):
        return self.operation(self.linear, z)


def viewed(linear, z):
    return torch.tanh(linear(z).transpose(0, 1).contiguous().transpose(0, 1).t().contiguous().view(WIDTH, -1).t())


ADJACENCY = torch.eye(BATCH).roll(1, 0).to_sparse()
OPERATIONS = {
    "by keywords": lambda linear, z: F.linear(input=z[:, None].cos(), weight=linear.weight, bias=linear.bias)[:, 0],
    "a sparse product": lambda linear, z: torch.tanh(ADJACENCY.to(z) @ linear(z)),
    "values read": lambda linear, z: torch.tanh(linear(z)) * (1 + len(z.tolist())),
    "written in place": lambda linear, z: torch.tanh(torch.ones(BATCH, WIDTH).to(z).add_(linear(z))),
    "a copy": lambda linear, z: torch.tanh(linear(copy.deepcopy(z.detach())) + z),
    "one row": lambda linear, z: torch.tanh(linear(z)).mean(0),
    "one column": lambda linear, z: torch.tanh(linear(z)).mean(1, keepdim=True),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("batched", [None, False])
@by_options
def test_anything_is_evaluated_in_one_way_or_another(operation, batched, options):
    net, z = OptDNN("gd", [Each(OPERATIONS[operation]) for _ in range(DEPTH)]), torch.randn(BATCH, WIDTH)
    found = parallel_evaluate(net, z, **options, batched=batched)
    found = found.value if isinstance(found, Solution) else found
    torch.testing.assert_close(found, net(z), rtol=1e-8, atol=1e-8)


def test_errors_of_the_transform_are_its_own():
    def failing(linear, z):
        raise ArithmeticError("no such thing")

    net = OptDNN("gd", [Each(failing) for _ in range(DEPTH)])
    for options in OPTIONS:
        with pytest.raises(ArithmeticError, match="no such thing"):
            parallel_evaluate(net, torch.randn(BATCH, WIDTH), **options)


def test_linear_layers_by_keyword_are_one_product():
    stack = Stack([Each(OPERATIONS["by keywords"]) for _ in range(3)])
    points = torch.randn(3, BATCH, WIDTH)
    found = stack(points, ())
    expected = [F.linear(point.cos(), *each) for point, *each in zip(points, *stack.tensors, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))


@dataclass
class Config:
    gain: Any
    scale: float = field(default=1.0, compare=False)


@dataclass
class Loose:
    """Equal to all others of its class."""

    gain: Any = 1.0
    scale: float = 1.0

    def __eq__(self, other):
        return isinstance(other, Loose)


class Settings:
    """Compared by one of its attributes."""

    __slots__ = ("gain", "scale")

    def __init__(self, gain, scale=1.0):
        self.gain, self.scale = gain, scale

    def __eq__(self, other):
        return torch.is_tensor(self.gain) or self.gain == other.gain


class Configured(nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.linear, self.settings = nn.Linear(WIDTH, WIDTH), settings

    def forward(self, z):
        settings = self.settings
        gain = settings[0] if isinstance(settings, deque) else settings.gain
        return 0.3 * getattr(settings, "scale", 1.0) * gain * torch.tanh(self.linear(z))


class Numbers(list):
    """With more than its items."""

    def __init__(self, gain, scale=1.0):
        super().__init__([gain])
        self.gain, self.scale = gain, scale


class Number(float):
    def __new__(cls, gain, scale=1.0):
        found = super().__new__(cls, gain)
        found.gain, found.scale = gain, scale
        return found


@pytest.mark.parametrize("kind", [Config, Loose, Settings, Numbers, Number])
def test_settings_that_a_comparison_leaves_out_are_no_less_different(kind):
    torch.manual_seed(0)
    net = OptDNN("gd", [Configured(kind(1.0, scale=1 / (k + 1))) for k in range(DEPTH)])
    z = torch.randn(BATCH, WIDTH)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), net(z))
    with pytest.raises(UnlikeError, match="layers 0 and 1 differ: settings"):
        parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    alike = OptDNN("gd", [Configured(kind(1.0, scale=0.5)) for _ in range(DEPTH)])
    torch.testing.assert_close(parallel_evaluate(alike, z, sweeps=DEPTH, batched=True), alike(z))


@pytest.mark.parametrize("keep", [Config, Loose, Settings, lambda g: SimpleNamespace(gain=g), lambda g: deque([g])])
def test_equal_parameters_in_settings_are_each_layers_own(keep):
    torch.manual_seed(0)
    gains = [nn.Parameter(torch.ones(())) for _ in range(DEPTH)]
    net, z = OptDNN("gd", [Configured(keep(gain)) for gain in gains]), torch.randn(BATCH, WIDTH)
    expected = torch.autograd.grad(net(z).square().sum(), gains)
    found = torch.autograd.grad(parallel_evaluate(net, z, sweeps=DEPTH).square().sum(), gains)
    torch.testing.assert_close(found, expected)
    with pytest.raises(UnlikeError, match="layers 0 and 1 differ: settings"):
        parallel_evaluate(net, z, sweeps=DEPTH, batched=True)


def test_settings_may_contain_themselves():
    torch.manual_seed(0)
    kept = [Config(1.0) for _ in range(DEPTH)]
    for each in kept:
        each.itself = [each]
    net, z = OptDNN("gd", [Configured(each) for each in kept]), torch.randn(BATCH, WIDTH)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), net(z))


class Remembered(nn.Module):
    """Asks a path for its text, which the path keeps."""

    def __init__(self):
        super().__init__()
        self.linear, self.path = nn.Linear(WIDTH, WIDTH), Path("a", "b")

    def forward(self, z):
        return torch.tanh(self.linear(z)) / len(str(self.path))


def test_paths_may_keep_their_text():
    torch.manual_seed(0)
    net, z = OptDNN("gd", [Remembered() for _ in range(DEPTH)]), torch.randn(BATCH, WIDTH)
    found = [parallel_evaluate(net, z, sweeps=DEPTH, batched=True) for _ in range(2)]
    torch.testing.assert_close(found, [net(z)] * 2)


class Derived(Settings):
    """Has more than what its base compares."""

    def __init__(self, gain, more):
        super().__init__(gain)
        self.more = more


@pytest.mark.parametrize(
    ("one", "other"),
    [(1.0, 2.0), (np.ones(1), np.zeros(1)), ([torch.ones(1)], [torch.zeros(1)]), (None, torch.ones(1))],
)
def test_inherited_comparisons_do_not_know_what_a_class_adds(one, other):
    with pytest.raises(UnlikeError, match="layers 0 and 1 differ: settings"):
        Stack([Configured(Derived(1.0, more)) for more in (one, other)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.0, -0.0),
        ({1}, {1.0}),
        ({1: 2}, {1.0: 2}),
        (deque([1], maxlen=1), deque([1], maxlen=2)),
        (defaultdict(int), defaultdict(float)),
    ],
)
def test_equal_values_may_differ(one, other):
    layers = [Configured([one, other][k % 2]) for k in range(2)]
    with pytest.raises(UnlikeError, match="layers 0 and 1 differ: settings"):
        Stack(layers)
