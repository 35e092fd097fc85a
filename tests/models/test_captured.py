"""The readings with recorded stretches."""

import pytest
import torch
from torch import nn

from implicit import Equilibrium, ImplicitGradient
from models import Implicit, InfiniteDepth, OptDEQ, OptDNN, image_network
from models.methods import GradientDescent, ProximalGradient
from solvers import Captured, Eager

LOOPS = (Eager(4), Captured(4))


class Contracting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6).double()
        with torch.no_grad():
            self.linear.weight.mul_(0.3 / torch.linalg.matrix_norm(self.linear.weight, 2))

    def forward(self, y, *inputs):
        return torch.tanh(self.linear(y)) - (0.5 * y - inputs[0] if inputs else 0)


def implicit(**options):
    pairs = [(Contracting(), Contracting()) for _ in range(2)]
    return [OptDNN(ProximalGradient(), pairs, alpha=0.0, **each) for each in settings(**options)]


def infinite(**options):
    pair = Contracting(), Contracting()
    return [OptDEQ(ProximalGradient(), pair, alpha=0.0, **each) for each in settings(**options)]


def explicit_infinite(**options):
    transform = Contracting()
    return [OptDEQ(GradientDescent(), transform, **each) for each in settings(**options)]


def settings(**options):
    return [
        {"loop": loop, "gradient": ImplicitGradient(rtol=1e-10, max_steps=300, loop=loop), **options} for loop in LOOPS
    ]


# an equilibrium of proximal steps that are solved themselves is not recorded, those steps are
@pytest.mark.filterwarnings("ignore:loop=Captured.*TiedStep.*it contains a solve:RuntimeWarning")
@pytest.mark.parametrize("make", [implicit, infinite, explicit_infinite])
def test_they_are_those_of_eager(make):
    networks = make(compact=False, rtol=1e-10, atol=0.0, max_steps=300)
    parameters = list(networks[0].parameters())
    for _ in range(4):
        x = torch.randn(5, 6, dtype=torch.float64)
        found = []
        for network in networks:
            value = network(x)
            found.append((value, *torch.autograd.grad(value.square().sum(), parameters, allow_unused=True)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(0.95)


def test_readings_hand_the_loop_on():
    x = torch.randn(3, 1, 8, 8)
    for reading in (Implicit(alpha=0.0, loop=Captured(4)), InfiniteDepth(loop=Captured(4))):
        network = image_network(1, 2, "pgd", widths=(8,), reading=reading, depths=(1,))
        for _ in range(3):
            network(x).sum().backward()
        layers = [module for module in network.modules() if isinstance(module, Equilibrium)]
        assert layers
        assert sum(len(layer._captures) for layer in layers) >= 2
