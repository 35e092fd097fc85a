"""What blocks keep on themselves: those that only read it are evaluated as one, others layer by layer."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from implicit import ImplicitGradient
from models import Newton, OptDNN, UnlikeError, parallel_evaluate
from models.parallel.stack import Stack

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
    refused = r"Updating in training .*: call eval\(\) on it"
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


def test_blocks_that_updated_a_buffer_are_not_tried_again():
    modules = [Updating("a count") for _ in range(2)]
    with pytest.raises(UnlikeError, match="Updating in training updates its buffer count"):
        Stack(modules)(torch.zeros(2, 1, TOKENS, WIDTH), ())
    with pytest.raises(UnlikeError, match="Updating in training updates its buffers"):
        Stack(modules)
    for module in modules:
        module.eval()
    Stack(modules)


def test_a_buffer_made_at_first_use_is_read_from_then_on():
    net, z = network(lambda: Updating("at first use"), "gd")
    parallel_evaluate(net, z, sweeps=1)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH, batched=True), net(z), rtol=1e-9, atol=1e-9)


def test_inference_mode_counts_no_updates():
    net, z = network(Masked)
    with torch.inference_mode():
        with pytest.raises(UnlikeError, match="inference mode"):
            parallel_evaluate(net, z, sweeps=2, batched=True)
        torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), net(z), rtol=1e-9, atol=1e-9)


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
    with pytest.raises(UnlikeError, match="updates its attribute steps"):
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
    with pytest.raises(UnlikeError, match="draws from the generator of random or NumPy"):
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
