"""Random numbers in sweeps: each layer draws as in the serial network, in training and in evaluation mode."""

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import Newton, OptDNN, UnlikeError, parallel_evaluate

BATCH, WIDTH, DEPTH = 4, 8, 5  # of 32 entries, so that a processor draws those of all layers in the same order
DEFAULT = ("dropout", "gumbel", "noise")
OTHERS = (
    "a generator of its own", "one in a dict", "one of the class", "NumPy", "Python", "a bound method",
    "a partial function", "a static method",
)  # fmt: skip


class Drawing(nn.Module):
    """Draws in every mode, as for the uncertainty of an answer."""

    common = torch.Generator("cpu")
    uniform_of_all = staticmethod(random.Random(1).random)

    def __init__(self, way, seed):
        super().__init__()
        self.way, self.linear = way, nn.Linear(WIDTH, WIDTH)
        self.generator = torch.Generator("cpu").manual_seed(seed) if way == "a generator of its own" else None
        self.several = {"noise": torch.Generator("cpu").manual_seed(seed)} if way == "one in a dict" else {}
        self.uniform = random.Random(seed).random if way == "a bound method" else None
        noise = torch.Generator("cpu").manual_seed(seed)
        self.noise = partial(torch.rand, generator=noise, device="cpu") if way == "a partial function" else None

    def forward(self, z):
        h = torch.tanh(self.linear(z))
        match self.way:
            case "dropout":
                return F.dropout(h, 0.3, training=True)
            case "gumbel":
                return h * F.gumbel_softmax(h)
            case "noise":
                return h + 0.1 * torch.randn_like(h)
            case "a generator of its own":
                return h + 0.1 * torch.randn(h.shape, generator=self.generator, device="cpu").to(h)
            case "one in a dict":
                return h + 0.1 * torch.randn(h.shape, generator=self.several["noise"], device="cpu").to(h)
            case "one of the class":
                return h + 0.1 * torch.randn(h.shape, generator=self.common, device="cpu").to(h)
            case "a bound method":
                return h * self.uniform()
            case "a static method":
                return h * self.uniform_of_all()
            case "a partial function":
                return h * self.noise(h.shape).to(h)
            case "NumPy":
                return h * np.random.rand()
        return h * random.random()


def generators(transform):
    several = [*transform.several.values(), *(transform.noise.keywords.values() if transform.noise else ())]
    return [each for each in (transform.generator, *several) if isinstance(each, torch.Generator)]


def seed():
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


def seeded(net):
    seed()
    for number, transform in enumerate(net.transforms):
        for generator in generators(transform):
            generator.manual_seed(number)
        if transform.uniform is not None:
            transform.uniform.__self__.seed(number)
    Drawing.common.manual_seed(1)
    Drawing.uniform_of_all.__self__.seed(1)


def states(net):
    numpy = np.random.get_state(legacy=False)["state"]
    return (
        torch.get_rng_state(),
        torch.from_numpy(numpy["key"].astype(np.int64)),
        numpy["pos"],
        random.getstate(),
        [generator.get_state() for transform in net.transforms for generator in generators(transform)],
        Drawing.common.get_state(),
        Drawing.uniform_of_all.__self__.getstate(),
        [transform.uniform and transform.uniform.__self__.getstate() for transform in net.transforms],
    )


def network(way, train):
    return OptDNN("gd", [Drawing(way, number) for number in range(DEPTH)]).double().train(train)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [{"sweeps": DEPTH}, {"rtol": 1e-11}], ids=["sweeps", "tolerance"])
@pytest.mark.parametrize("batched", [None, False, True])
@pytest.mark.parametrize("way", DEFAULT + OTHERS)
def test_draws_are_those_of_the_serial_network(way, batched, options, train, monkeypatch):
    monkeypatch.setattr("models.parallel.evaluate._batching_pays", lambda z, depth: True)
    if torch.get_default_device().type == "cuda" and batched is not False and way in DEFAULT:
        pytest.skip("a GPU draws for all layers at once in another order")
    net, z = network(way, train), torch.randn(BATCH, WIDTH, requires_grad=True)
    tensors = [z, *(p for p in net.parameters())]
    for _ in range(3):
        seeded(net)
        expected = net(z)
        expected_states = states(net)
        seeded(net)
        if batched and way in OTHERS:
            with pytest.raises(UnlikeError, match=r"(?i)generator|Random object"):
                parallel_evaluate(net, z, batched=True, **options)
            assert str(states(net)) == str((seeded(net), states(net))[1]), "nothing is drawn"
            continue
        found = parallel_evaluate(net, z, batched=batched, **options)
        assert str(states(net)) == str(expected_states)
        found = getattr(found, "value", found)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
        pulled = (torch.autograd.grad(value.square().sum(), tensors) for value in (found, expected))
        torch.testing.assert_close(*pulled, rtol=1e-7, atol=1e-8)


class Still(nn.Linear):
    """Draws nothing."""

    def __init__(self):
        super().__init__(WIDTH, WIDTH)


@pytest.mark.parametrize("batched", [True, False])
def test_where_nothing_is_drawn_nothing_is_put_back_either(batched, monkeypatch):
    """Other threads may draw meanwhile."""
    net, z = OptDNN("gd", [Still() for _ in range(DEPTH)]).double().eval(), torch.randn(2, WIDTH)
    put_back, real = [], torch.set_rng_state
    monkeypatch.setattr(torch, "set_rng_state", lambda state: put_back.append(state) or real(state))
    parallel_evaluate(net, z, sweeps=DEPTH, batched=batched)
    assert not put_back


left = [0]
"""Evaluations until one is interrupted."""


class Skipping(nn.Module):
    """Stochastic depth, by a condition that torch.vmap refuses after it has drawn."""

    def __init__(self, generator):
        super().__init__()
        self.linear, self.generator = nn.Linear(WIDTH, WIDTH), generator

    def forward(self, z):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        keep = random.random() * np.random.rand()
        if torch.rand((), generator=self.generator) < 0.3:
            return torch.zeros_like(z)
        return keep * F.dropout(torch.tanh(self.linear(z)), 0.1, training=True)


def skipping(depth):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    return OptDNN("gd", [Skipping(generator) for _ in range(depth)]), torch.randn(BATCH, WIDTH)


def common_states(net):
    kind, keys, *place = np.random.get_state()
    own = net.transforms[0].generator.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), place, own.tolist()


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options", [{"sweeps": 16}, {"rtol": 1e-11}, {"sweeps": 16, "newton": Newton()}], ids=["sweeps", "rtol", "newton"]
)
def test_what_a_try_as_one_drew_is_drawn_again(options, train):
    (net, z), (other, _) = skipping(16), skipping(16)
    seed()
    expected = other.train(train)(z)
    after = common_states(other)
    seed()
    found = parallel_evaluate(net.train(train), z, **options)
    torch.testing.assert_close(found if "sweeps" in options else found.value, expected, rtol=1e-8, atol=1e-8)
    assert common_states(net) == after


@pytest.mark.parametrize("sweep", [1, 2, 4])
@pytest.mark.parametrize("options", [{"sweeps": DEPTH}, {"rtol": 1e-11}], ids=["sweeps", "rtol"])
def test_nothing_is_drawn_where_a_sweep_was_interrupted(options, sweep):
    net, z = skipping(DEPTH)
    left[0] = (sweep - 1) * DEPTH + 3
    before = common_states(net)
    with pytest.raises(KeyboardInterrupt):
        parallel_evaluate(net, z, batched=False, **options)
    assert common_states(net) == before
