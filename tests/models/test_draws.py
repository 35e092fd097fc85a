"""Random numbers in sweeps: each layer draws as in the serial network, in training and in evaluation mode."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import OptDNN, UnlikeError, parallel_evaluate

BATCH, WIDTH, DEPTH = 4, 8, 5  # of 32 entries, so that a processor draws those of all layers in the same order
DEFAULT = ("dropout", "gumbel", "noise")
OTHERS = ("a generator of its own", "NumPy", "Python")


class Drawing(nn.Module):
    """Draws in every mode, as for the uncertainty of an answer."""

    def __init__(self, way, seed):
        super().__init__()
        self.way, self.linear = way, nn.Linear(WIDTH, WIDTH)
        self.generator = torch.Generator("cpu").manual_seed(seed) if way == "a generator of its own" else None

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
            case "NumPy":
                return h * np.random.rand()
        return h * random.random()


def seeded(net):
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    for number, transform in enumerate(net.transforms):
        if transform.generator:
            transform.generator.manual_seed(number)


def states(net):
    numpy = np.random.get_state(legacy=False)["state"]
    return (
        torch.get_rng_state(),
        torch.from_numpy(numpy["key"].astype(np.int64)),
        numpy["pos"],
        random.getstate(),
        [transform.generator.get_state() for transform in net.transforms if transform.generator],
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
            with pytest.raises(UnlikeError, match="generator"):
                parallel_evaluate(net, z, batched=True, **options)
            assert str(states(net)) == str((seeded(net), states(net))[1]), "nothing is drawn"
            continue
        found = parallel_evaluate(net, z, batched=batched, **options)
        assert str(states(net)) == str(expected_states)
        found = getattr(found, "value", found)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
        pulled = (torch.autograd.grad(value.square().sum(), tensors) for value in (found, expected))
        torch.testing.assert_close(*pulled, rtol=1e-7, atol=1e-8)
