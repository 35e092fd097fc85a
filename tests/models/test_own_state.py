"""What blocks keep on themselves: those that only read it are evaluated as one, others layer by layer."""

import copy
import gc
import random
import warnings
import weakref
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from implicit import ImplicitGradient
from models import Newton, OptDNN, UnlikeError, parallel_evaluate
from models.parallel.stack import stacked

BATCH, TOKENS, WIDTH, DEPTH = 3, 4, 6, 5


class Masked(nn.Module):
    """Causal attention as in GPT, with a mask of floats or of truth values, and a table of its own."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.ones(TOKENS, TOKENS, dtype=dtype).tril())
        self.register_buffer("table", torch.rand(TOKENS, WIDTH), persistent=False)
        self.register_buffer("none", None)

    def forward(self, z):
        q, k, v = self.inner(z + self.table).chunk(3, -1)
        weights = (q @ k.mT).masked_fill(self.mask == 0, -torch.inf).softmax(-1)
        return torch.tanh(self.outer(weights @ v))


class Gathered(nn.Module):
    """Reads at positions."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(TOKENS, track_running_stats=False)
        self.register_buffer("positions", torch.tensor([2, 0, 3, 1]))

    def forward(self, z):
        return torch.tanh(self.linear(self.norm(z[:, self.positions])))


class Updating(nn.Module):
    """Updates a buffer in one of several ways, and reads it."""

    def __init__(self, way):
        super().__init__()
        self.way, self.linear = way, nn.Linear(WIDTH, WIDTH)
        self.register_buffer("average", torch.ones(WIDTH))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("first", None)
        if way == "through an attribute":
            self.again = self.average[:2]

    def forward(self, z):
        with torch.no_grad():
            if self.way == "in place":
                self.average.mul_(0.9).add_(z.mean((0, 1)), alpha=0.1)
            elif self.way == "detached":
                self.average.detach().mul_(0.9)
            elif self.way == "replaced":
                self.average = self.average * 0.9
            elif self.way == "a count":
                self.count += 1
            elif self.way == "the data of a count":
                self.count.data += 1
            elif self.way == "a count in memory":
                self.count.numpy()[...] += 1
            elif self.way == "at first use" and self.first is None:
                self.first = z.new_ones(WIDTH) * 2
            elif self.way == "through an attribute":
                self.again.mul_(0.9)
        scale = self.average + self.count + (0 if self.first is None else self.first)
        return torch.tanh(self.linear(z) * scale)


def network(make, method="nesterov", **options):
    torch.manual_seed(0)
    return OptDNN(method, [make() for _ in range(DEPTH)], **options).double().train(), torch.randn(BATCH, TOKENS, WIDTH)


def pulled(output, net, z):
    tensors = [z, *net.parameters()]
    return torch.autograd.grad(output.square().sum(), tensors, allow_unused=True, materialize_grads=True)


READING = {
    "floats": Masked,
    "truth values": lambda: Masked(torch.bool),
    "positions": Gathered,
}


@pytest.mark.parametrize("make", READING.values(), ids=READING)
def test_blocks_that_read_buffers_are_evaluated_as_one(make):
    net, z = network(make)
    z.requires_grad_()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    for sweeps in (2, DEPTH):
        found = parallel_evaluate(net, z, sweeps=sweeps, batched=True)
        expected = net(z) if sweeps == DEPTH else parallel_evaluate(net, z, sweeps=sweeps, batched=False)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(pulled(found, net, z), pulled(expected, net, z), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(dict(net.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["floats", "truth values"])
def test_proximal_steps_read_them_too(kind, alpha):
    exact = {"rtol": 1e-11, "max_steps": 200}
    net, z = network(READING[kind], "ppa", alpha=alpha, **exact, gradient=ImplicitGradient(**exact))
    z.requires_grad_()
    found, expected = parallel_evaluate(net, z, sweeps=DEPTH, batched=True), net(z)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(pulled(found, net, z), pulled(expected, net, z), rtol=1e-6, atol=1e-7)


def test_tied_blocks_and_newton_sweeps_read_them_too():
    net, z = network(Masked, "gd")
    tied = OptDNN("gd", [net.transforms[0]] * DEPTH)
    torch.testing.assert_close(parallel_evaluate(tied, z, sweeps=DEPTH, batched=True), tied(z), rtol=1e-9, atol=1e-9)
    found = parallel_evaluate(net, z, rtol=1e-9, newton=Newton(), batched=True)
    torch.testing.assert_close(found.value, net(z), rtol=1e-7, atol=1e-7)


WAYS = [
    "in place",
    "detached",
    "replaced",
    "a count",
    "the data of a count",
    "a count in memory",
    "at first use",
    "through an attribute",
]


@pytest.mark.parametrize("is_tied", [False, True], ids=["layers", "tied"])
@pytest.mark.parametrize("way", WAYS)
def test_updates_are_refused_and_otherwise_made_layer_by_layer(way, is_tied, monkeypatch):
    monkeypatch.setattr("models.parallel.evaluate._batching_pays", lambda z, depth: True)
    net, z = network(lambda: Updating(way), "gd")
    if is_tied:
        net = OptDNN("gd", [net.transforms[0]] * DEPTH)
    other, z = copy.deepcopy(net), z.requires_grad_()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    refused = r"Updating in training changes its .*: call eval\(\) on it"
    with pytest.raises((UnlikeError, RuntimeError), match=f"{refused}|vmap|broadcast shape"):
        parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    torch.testing.assert_close(dict(net.named_buffers()), before, rtol=0, atol=0)
    for _ in range(2):
        if is_tied and way != "at first use":  # which update a layer sees depends on the order of evaluations
            parallel_evaluate(net, z, sweeps=DEPTH)
            parallel_evaluate(other, z, sweeps=DEPTH, batched=False)
        else:
            found, expected = parallel_evaluate(net, z, sweeps=DEPTH), other(z)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(pulled(found, net, z), pulled(expected, other, z), rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(dict(net.named_buffers()), dict(other.named_buffers()), rtol=1e-9, atol=1e-9)


def test_blocks_that_changed_something_are_not_tried_again_until_they_change_nothing(monkeypatch):
    monkeypatch.setattr("models.parallel.evaluate._batching_pays", lambda z, depth: True)
    tried, (net, z) = [], network(lambda: Updating("a count"), "gd")
    monkeypatch.setattr("models.parallel.sweeps.stacked", lambda transforms: tried.append(1) or stacked(transforms))
    for _ in range(3):
        parallel_evaluate(net, z, sweeps=1)
    assert len(tried) == 1
    for each in net.transforms:
        each.way = "none"
    for _ in range(3):
        parallel_evaluate(net, z, sweeps=1)
    assert len(tried) == 3
    for each in net.transforms:
        each.way = "a count"
    with pytest.raises(UnlikeError, match="Updating in training changes its count"):
        parallel_evaluate(net, z, sweeps=1, batched=True)


def test_a_buffer_made_at_first_use_is_read_from_then_on():
    net, z = network(lambda: Updating("at first use"), "gd")
    parallel_evaluate(net, z, sweeps=1)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH, batched=True), net(z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("train", [True, False])
def test_in_inference_mode_too(train):
    for make, refused in ((Masked, False), (lambda: Updating("in place"), True), (lambda: Updating("a count"), True)):
        net, z = network(make, "gd")
        other = copy.deepcopy(net.train(train))
        with torch.inference_mode():
            if refused:
                with pytest.raises((UnlikeError, RuntimeError), match=r"Updating .*changes its"):
                    parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
            found = parallel_evaluate(net, z, sweeps=DEPTH, batched=None if refused else True)
            torch.testing.assert_close(found, other(z), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(dict(net.named_buffers()), dict(other.named_buffers()), rtol=1e-9, atol=1e-9)


class Keeping(nn.Module):
    """Keeps something on itself in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way, self.linear = way, nn.Linear(WIDTH, WIDTH)
        self.weights, self.parts, self.steps, self.nested = {}, [], torch.zeros(()), {"inner": []}

    def forward(self, z):
        h = self.linear(z)
        if self.way == "a dict":
            if "own" not in self.weights:
                self.weights["own"] = self.linear.weight.softmax(0).detach()
            h = h + z @ self.weights["own"]
        elif self.way == "a list":
            self.parts.append(h.square().mean())
        elif self.way == "nested":
            self.nested["inner"].append(h.detach())
        elif self.way == "a tensor":
            self.steps += 1
            h = h * self.steps
        elif self.way == "a list, then a value":
            self.parts.append(h)
            h = h * float(h.detach().sum() < torch.inf)
        return torch.tanh(h)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("way", ["a dict", "a list", "nested", "a list, then a value"])
def test_nothing_of_an_evaluation_as_one_stays_in_containers(way, train, monkeypatch):
    monkeypatch.setattr("models.parallel.evaluate._batching_pays", lambda z, depth: True)
    net, z = network(lambda: Keeping(way), "gd")
    net.train(train)
    other = copy.deepcopy(net)
    for _ in range(2):
        torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), other(z), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(net(z), other(z), rtol=1e-9, atol=1e-9)
    kept = [each.parts[-1] for each in net.transforms if each.parts]
    assert not kept or bool(torch.stack(kept).isfinite().all())


@pytest.mark.parametrize("train", [True, False])
def test_a_tensor_that_is_counted_up_is_refused(train):
    net, z = network(lambda: Keeping("a tensor"), "gd")
    with pytest.raises(UnlikeError, match="changes its steps"):
        parallel_evaluate(net.train(train), z, sweeps=1, batched=True)
    assert all(float(each.steps) == 0 for each in net.transforms)


@pytest.mark.parametrize("generator", [random.random, np.random.rand], ids=["random", "NumPy"])
def test_draws_of_other_generators_are_not_shared_by_all_layers(generator, monkeypatch):
    monkeypatch.setattr("models.parallel.evaluate._batching_pays", lambda z, depth: True)

    class Skipped(nn.Linear):
        def forward(self, z):
            return torch.zeros_like(z) if self.training and generator() < 0.5 else super().forward(z)

    net, z = network(lambda: Skipped(WIDTH, WIDTH), "gd")
    random.seed(0)
    np.random.seed(0)
    first = parallel_evaluate(net, z, sweeps=1)
    random.seed(0)
    np.random.seed(0)
    torch.testing.assert_close(first, parallel_evaluate(net, z, sweeps=1, batched=False), rtol=1e-9, atol=1e-9)
    with pytest.raises(UnlikeError, match="draws from a generator that is not PyTorch's own"):
        parallel_evaluate(net, z, sweeps=1, batched=True)
    parallel_evaluate(net.eval(), z, sweeps=1, batched=True)


class Held(nn.Module):
    def __init__(self, changes):
        super().__init__()
        self.linear, self.statistics, self.changes = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(TOKENS), changes
        self.held = self.statistics.running_mean  # the module has no buffer of its own

    def forward(self, z):
        if self.changes:
            self.held.mul_(0.9).add_(0.1)
        return torch.tanh(self.statistics(self.linear(z))) + self.held[:, None]


@pytest.mark.parametrize("changes", [True, False])
@pytest.mark.parametrize("batched", [None, False])
@pytest.mark.parametrize("options", [{"sweeps": DEPTH}, {"rtol": 1e-11}], ids=["sweeps", "tolerance"])
def test_attributes_of_modules_without_buffers_may_hold_those_of_others(changes, batched, options):
    net, z = network(lambda: Held(changes), "gd")
    other = OptDNN("gd", [Held(changes) for _ in range(DEPTH)]).double()
    other.load_state_dict(net.state_dict())
    for each in (*net.transforms, *other.transforms):
        each.held = each.statistics.running_mean
    found = parallel_evaluate(net, z, batched=batched, **options)
    torch.testing.assert_close(getattr(found, "value", found), other(z), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(dict(net.named_buffers()), dict(other.named_buffers()), rtol=1e-8, atol=1e-8)


class Growing(nn.Module):
    """A table that grows, and its length; as rotary embeddings have."""

    def __init__(self):
        super().__init__()
        self.linear, self.length, self.ready = nn.Linear(WIDTH, WIDTH), 2, False
        self.register_buffer("table", torch.ones(2, WIDTH), persistent=False)
        self.register_buffer("scale", torch.zeros(WIDTH))

    def forward(self, z):
        if z.shape[1] > self.length:
            self.length = z.shape[1]
            self.register_buffer("table", torch.arange(self.length, dtype=z.dtype)[:, None].cos().expand(-1, WIDTH))
        if not self.ready:  # from the first batch, as in ActNorm
            self.scale.copy_(1 / (1 + z.detach().abs().mean((0, 1))))
            self.ready = True
        return torch.tanh(self.linear(z) * self.table[: z.shape[1]] * self.scale)


@pytest.mark.parametrize("batched", [None, False])
@pytest.mark.parametrize("options", [{"sweeps": DEPTH}, {"rtol": 1e-11}], ids=["sweeps", "tolerance"])
def test_flags_and_lengths_go_with_the_buffers_they_describe(options, batched):
    net, z = network(Growing, "gd")
    other = copy.deepcopy(net)
    for _ in range(2):
        found = parallel_evaluate(net, z, batched=batched, **options)
        torch.testing.assert_close(getattr(found, "value", found), other(z), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(dict(net.named_buffers()), dict(other.named_buffers()), rtol=1e-8, atol=1e-8)
    assert all(each.ready and each.length == TOKENS for each in net.transforms)
    torch.testing.assert_close(net.eval()(z), other.eval()(z), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("batched", [None, True, False])
def test_transforms_that_write_into_their_input_are_refused(batched):
    net, z = network(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH)), "gd")
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"writes into its input, as nn\.ReLU|written-to tensor"):
        parallel_evaluate(net, z, sweeps=DEPTH, batched=batched)


class Stateful(nn.Module):
    """Scales by something that it keeps, and that its first or every input changes, in one of many ways."""

    shared: ClassVar[dict] = {}

    def __init__(self, way, given=None):
        super().__init__()
        self.way, self.linear, self.given = way, nn.Linear(WIDTH, WIDTH), given
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("peak", torch.zeros(()))
        self.register_buffer("codes", torch.ones(200, 200))  # larger than those that are always copied
        self.inner, self.settings, self.several = nn.Module(), SimpleNamespace(size=0.0), ([], Counter())
        self.store = self.inner.store = []

    def forward(self, z):
        size = z.detach().abs().mean()
        match self.way:
            case "a flag that comes":
                if not hasattr(self, "ready"):
                    self.scale.copy_(size)
                    self.ready = True
            case "a tuple":
                if getattr(self, "shape", None) != tuple(z.shape):
                    self.scale.copy_(size)
                    self.shape = tuple(z.shape)
            case "a flag of a parent":
                if not self.given.__dict__.get(self, False):
                    self.scale.copy_(size)
                    self.given.__dict__[self] = True
            case "a peak":
                if size > self.peak:
                    self.peak.copy_(size)
                self.scale.copy_(self.peak)
            case "a peak by data":
                self.peak.data.copy_(torch.maximum(size, self.peak))
                self.scale = self.peak
            case "a list with two names":
                self.inner.store.append(size)
                self.scale = self.store[-1]
            case "a list of the class":
                self.scale = self.shared.setdefault("first", size)
            case "settings":
                self.settings.size += float(size) if z.numel() else 0.0
                self.scale = torch.as_tensor(self.settings.size)
            case "a tuple of containers":
                self.several[0].append(size)
                self.several[1]["calls"] += 1
                self.scale = self.several[0][0] * self.several[1]["calls"]
            case "a large buffer":
                self.codes.mul_(0.9).add_(size)
                self.scale = self.codes[0, 0].clone()
            case "a new buffer":
                if "late" not in self._buffers:
                    self.register_buffer("late", size, persistent=False)
                self.scale = self.late
            case "given to all":
                self.scale = self.given.setdefault("first", size)
        return torch.tanh(self.linear(z) * (1 + self.scale))


STATEFUL = [
    "a flag that comes", "a tuple", "a flag of a parent", "a peak", "a peak by data", "a list with two names",
    "a list of the class", "settings", "a tuple of containers", "a large buffer", "a new buffer", "given to all",
]  # fmt: skip


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batched", [None, False])
@pytest.mark.parametrize("options", [{"sweeps": DEPTH}, {"rtol": 1e-11}], ids=["sweeps", "tolerance"])
@pytest.mark.parametrize("way", STATEFUL)
def test_whatever_blocks_keep_is_that_of_the_serial_network(way, options, batched, train, monkeypatch):
    monkeypatch.setattr("models.parallel.evaluate._batching_pays", lambda z, depth: True)
    nets = []
    for _ in range(2):
        given = SimpleNamespace() if way == "a flag of a parent" else {}
        nets.append(network(lambda given=given: Stateful(way, given), "gd")[0].train(train))
    z = torch.randn(BATCH, TOKENS, WIDTH)
    for call in range(3):
        values = []
        for net, evaluate in zip(nets, (lambda net, z: net(z), parallel_evaluate), strict=True):
            Stateful.shared.clear()
            given_z = (z * (1 + call)).requires_grad_()
            found = evaluate(
                net, given_z, **({} if evaluate is not parallel_evaluate else options | {"batched": batched})
            )
            found = getattr(found, "value", found)
            values.append((found, pulled(found, net, given_z), dict(net.named_buffers())))
            copy.deepcopy(net)
        torch.testing.assert_close(*values, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("batched", [None, True, False])
@pytest.mark.parametrize("options", [{"sweeps": DEPTH}, {"rtol": 1e-10}], ids=["sweeps", "tolerance"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("rows", [1, BATCH])
def test_writing_into_points_or_inputs_is_refused_in_any_mode(rows, mode, options, batched):
    class Adding(nn.Linear):
        def forward(self, z, x):
            return super().forward(z + x.add_(1))

    for transform in (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH)), Adding(WIDTH, WIDTH)):
        net = OptDNN("gd", [copy.deepcopy(transform) for _ in range(DEPTH)]).double()
        with mode():
            z, *inputs = torch.randn(2 if isinstance(transform, Adding) else 1, rows, TOKENS, WIDTH)
            with pytest.raises(RuntimeError, match=r"writes into its input, as nn\.ReLU|written-to tensor"):
                parallel_evaluate(net, z, *inputs, batched=batched, **options)


@pytest.mark.parametrize("way", STATEFUL)
def test_nothing_is_kept_of_a_call_that_fails(way):
    net, z = network(lambda: Stateful(way, SimpleNamespace() if way == "a flag of a parent" else {}), "gd")
    Stateful.shared.clear()
    other, evaluations = copy.deepcopy(net), []

    def failing(module, args, output):
        evaluations.append(1)
        if len(evaluations) == 2 * DEPTH:
            raise RuntimeError("no more")

    handle = net.transforms[-1].linear.register_forward_hook(failing)
    evaluations += [1] * (2 * DEPTH - 2)
    with pytest.raises(RuntimeError, match="no more"):
        parallel_evaluate(net, z, sweeps=DEPTH, batched=False)
    handle.remove()
    torch.testing.assert_close(dict(net.named_buffers()), dict(other.named_buffers()), rtol=0, atol=0)
    assert Stateful.shared == {}
    found = parallel_evaluate(net, z, sweeps=DEPTH)
    Stateful.shared.clear()
    torch.testing.assert_close(found, other(z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batched", [None, False])
@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(TOKENS), lambda: Updating("replaced")])
def test_newton_sweeps_leave_no_tensors_of_transforms(make, batched):
    net, z = network(lambda: nn.Sequential(make(), nn.Linear(WIDTH, WIDTH), nn.Tanh()), "gd")
    refused = isinstance(make(), nn.BatchNorm1d)
    before = copy.deepcopy(dict(net.named_buffers()))
    with pytest.raises(TypeError, match="as batch normalisation") if refused else nullcontext():
        parallel_evaluate(net, z, sweeps=2, newton=Newton(), batched=batched)
    if refused:
        torch.testing.assert_close(dict(net.named_buffers()), before, rtol=0, atol=0)
    copy.deepcopy(net)


_shared_generator = np.random.default_rng(0)


@pytest.mark.parametrize("way", ["of the module", "its own", "PCG64", "Python"])
def test_draws_of_generators_that_layers_name_are_each_layers_own_and_the_same_in_all_sweeps(way, monkeypatch):
    monkeypatch.setattr("models.parallel.evaluate._batching_pays", lambda z, depth: True)
    theirs, before = random.Random(0), np.random.get_bit_generator()
    if way == "PCG64":
        np.random.set_bit_generator(np.random.PCG64(0))

    class Skipped(nn.Linear):
        def __init__(self):
            super().__init__(WIDTH, WIDTH)
            self.generator = _shared_generator if way == "its own" else None

        def forward(self, z):
            if way == "of the module":
                draw = _shared_generator.random()
            elif way == "its own":
                draw = self.generator.random()
            else:
                draw = np.random.rand() if way == "PCG64" else theirs.random()
            return torch.full_like(z, draw) if self.training else super().forward(z)

    try:
        net, z = network(Skipped, "gd")
        found = parallel_evaluate(net, torch.zeros_like(z), sweeps=3)
        draws = [parallel_evaluate(net, torch.zeros_like(z), sweeps=3) for _ in range(3)]
        assert len({float(each.sum()) for each in (found, *draws)}) == 4
        with pytest.raises(UnlikeError, match="draws from a generator that is not PyTorch's own"):
            parallel_evaluate(net, z, sweeps=1, batched=True)
    finally:
        np.random.set_bit_generator(before)


def test_gradient_hooks_and_branches_see_whether_gradients_are_recorded():
    class Clamped(nn.Linear):
        def forward(self, z):
            h = super().forward(z)
            if not h.requires_grad:
                return h.relu()
            h.register_hook(lambda grad: 0.1 * grad)
            return h.tanh()

    net, z = network(lambda: Clamped(WIDTH, WIDTH), "gd")
    net, z = OptDNN("gd", [*net.transforms] * 4), z.requires_grad_()
    found, expected = parallel_evaluate(net, z, sweeps=4 * DEPTH), net(z)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pulled(found, net, z), pulled(expected, net, z), rtol=1e-8, atol=1e-9)


def test_outputs_are_broadcast_to_the_point_and_other_shapes_are_refused():
    class Pooled(nn.Linear):
        def forward(self, z):
            return super().forward(z).mean(1, keepdim=True)

    class Flat(nn.Linear):
        def forward(self, z):
            return super().forward(z).flatten(0, 1)

    net, z = network(lambda: Pooled(WIDTH, WIDTH), "gd")
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH, batched=True), net(z), rtol=1e-9, atol=1e-9)
    for batched in (None, True, False):
        with pytest.raises(RuntimeError, match="size"):
            parallel_evaluate(network(lambda: Flat(WIDTH, WIDTH), "gd")[0], z, sweeps=DEPTH, batched=batched)


def test_a_large_buffer_that_was_only_read_before_is_watched():
    net, z = network(lambda: Stateful("none"), "gd")
    parallel_evaluate(net, z, sweeps=2, batched=False)
    for each in net.transforms:
        each.way = "a large buffer"
    with pytest.raises(RuntimeError, match="writes into its codes, which it only read before"):
        parallel_evaluate(net, z, sweeps=2, batched=False)
    other = copy.deepcopy(net)
    for _ in range(DEPTH):  # each of the layers is met once
        try:
            found = parallel_evaluate(net, z, sweeps=DEPTH, batched=False)
            break
        except RuntimeError:
            other = copy.deepcopy(net)
    torch.testing.assert_close(found, other(z), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dict(net.named_buffers()), dict(other.named_buffers()), rtol=1e-9, atol=1e-9)


class Detaching(nn.Module):
    """Detaches in place what it keeps, as in back-propagation through time that is cut."""

    def __init__(self, way):
        super().__init__()
        self.way, self.linear, self.state = way, nn.Linear(WIDTH, WIDTH), None
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, z):
        if self.way == "a buffer":
            self.mean.detach_().lerp_(z.detach().mean((0, 1)), 0.1)
            return torch.tanh(self.linear(z - self.mean.clone()))
        if self.state is not None:
            self.state.detach_()
        self.state = torch.tanh(self.linear(z) + (0 if self.state is None else self.state))
        return self.state


@pytest.mark.filterwarnings("ignore:Detaching keeps a tensor with a graph")
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [{"sweeps": DEPTH}, {"rtol": 1e-11}], ids=["sweeps", "tolerance"])
@pytest.mark.parametrize("way", ["a buffer", "an attribute"])
def test_what_blocks_keep_may_be_detached_in_place(way, options, train):
    net, serial = (network(lambda: Detaching(way), "gd")[0].train(train) for _ in range(2))
    z = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    for _ in range(3):
        found, expected = parallel_evaluate(net, z, **options), serial(z)
        found = getattr(found, "value", found)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(pulled(found, net, z), pulled(expected, serial, z), rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(dict(net.named_buffers()), dict(serial.named_buffers()), rtol=1e-9, atol=1e-9)


class Balanced(nn.Module):
    """Leaves a part of the loss, as a mixture of experts does, in an attribute, a tuple or a list."""

    def __init__(self, way):
        super().__init__()
        self.way, self.linear, self.router, self.losses = way, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), []

    def forward(self, z):
        loss = self.router(z).softmax(-1).mean((0, 1)).square().sum()
        if self.way == "a list":
            self.losses.append(loss)
        elif self.way == "a new dict":
            self.kept = {"balance": [SimpleNamespace(loss=loss)]}
        else:
            self.kept = (z.shape, loss) if self.way == "a tuple" else loss
        return torch.tanh(self.linear(z))

    @property
    def loss(self):
        if self.way == "a new dict":
            return self.kept["balance"][0].loss
        return self.losses[-1] if self.way == "a list" else self.kept[1] if self.way == "a tuple" else self.kept


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("way", ["an attribute", "a tuple", "a list", "a new dict"])
def test_parts_of_the_loss_that_blocks_keep_have_the_whole_gradient(way, train):
    net, serial = (network(lambda: Balanced(way), "gd")[0].train(train) for _ in range(2))
    z, gradients = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True), []
    for one, output in ((net, parallel_evaluate(net, z, sweeps=DEPTH)), (serial, serial(z))):
        loss = sum(transform.loss for transform in one.transforms)
        output = getattr(output, "value", output)
        gradients.append((loss.detach(), pulled(loss.sqrt() + output.mean(), one, z)))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("newton", [None, Newton(diagonal=True)], ids=["plain", "Newton"])
@pytest.mark.parametrize("way", ["an attribute", "a tuple", "a list", "a new dict"])
def test_to_a_tolerance_a_warning_says_where_the_gradient_of_such_parts_ends(way, newton):
    net, z = network(lambda: Balanced(way), "gd")
    with pytest.warns(RuntimeWarning, match=r"Balanced keeps a tensor with a graph in its (kept|losses).*pass sweeps="):
        parallel_evaluate(net, z, rtol=1e-6, newton=newton)
    parallel_evaluate(net, z, rtol=1e-6, newton=newton)  # once for all blocks
    with torch.no_grad():
        parallel_evaluate(network(lambda: Balanced(way), "gd")[0], z, rtol=1e-6)


def test_what_blocks_keep_of_a_solve_is_freed_with_the_next():
    class Keeping(nn.Linear):
        def forward(self, z):
            self.seen = torch.tanh(super().forward(z))
            seen.append(weakref.ref(self.seen))
            return self.seen

    net, z, seen = *network(lambda: Keeping(WIDTH, WIDTH), "gd"), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(4):
            parallel_evaluate(net, z, rtol=1e-9).value.sum().backward()
    gc.collect()
    assert sum(each() is not None for each in seen) <= 2 * DEPTH


@pytest.mark.parametrize("way", ["a slice", "a detached view", "a view of another shape"])
def test_what_shares_memory_may_be_detached_in_place_too(way):
    class Carrying(nn.Linear):
        def __init__(self):
            super().__init__(WIDTH, WIDTH)
            self.state = torch.zeros(BATCH, TOKENS, WIDTH, dtype=torch.float64)
            self.share()

        def share(self):
            shared = {"a slice": self.state[:1], "a detached view": self.state.detach()}
            self.other = shared.get(way, self.state.view(-1))

        def forward(self, z):
            self.state.detach_()
            with torch.no_grad():
                self.state.mul_(0.5).add_(z)
            return torch.tanh(super().forward(z) + self.state.clone() + self.other.sum())

    net, serial = (network(Carrying, "gd")[0] for _ in range(2))
    z = torch.randn(BATCH, TOKENS, WIDTH)
    for _ in range(3):
        torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), serial(z), rtol=1e-9, atol=1e-9)


def test_two_arrays_over_one_memory_are_copied_as_one():
    class Shared(nn.Linear):
        def __init__(self):
            super().__init__(WIDTH, WIDTH)
            memory = np.ones(16)
            self.first, self.all = torch.from_numpy(memory[:8]), torch.from_numpy(memory)

        def forward(self, z):
            self.first.mul_(0.9)
            return torch.tanh(super().forward(z) * self.all.to(z).mean())

    net, serial = (network(Shared, "gd")[0] for _ in range(2))
    z = torch.randn(BATCH, TOKENS, WIDTH)
    for _ in range(3):
        torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), serial(z), rtol=1e-9, atol=1e-9)


def test_newton_sweeps_refuse_hooks_on_gradients():
    class Hooked(nn.Linear):
        def forward(self, z):
            h = super().forward(z)
            if h.requires_grad:
                h.register_hook(lambda grad: 0.5 * grad)
            return h.tanh()

    net, z = network(lambda: Hooked(WIDTH, WIDTH), "gd")
    for options in ({"sweeps": DEPTH}, {"rtol": 1e-9}):
        with pytest.raises(TypeError, match=r"hook on a gradient.*newton=None"):
            parallel_evaluate(net, z, newton=Newton(), **options)
    with torch.no_grad():
        found = parallel_evaluate(net, z, newton=Newton(), sweeps=DEPTH)
        torch.testing.assert_close(found, net(z), rtol=1e-9, atol=1e-9)
