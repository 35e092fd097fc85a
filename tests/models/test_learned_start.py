"""A learned start: trained beside the cell, neither disturbing the other, and fewer steps for it."""

import copy

import pytest
import torch
from torch import nn

from implicit import Equilibrium, ImplicitGradient, PhantomGradient, UnrolledGradient, record
from models import Dense, InfiniteDepth, LearnedStart, OptDEQ, OptDNN, vector_network
from solvers import Picard


class Cell(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.inner, self.inject = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, z, x):
        return torch.tanh(0.5 * self.inner(z) + self.inject(x))


def made(gradient=ImplicitGradient(), **options):
    start = LearnedStart(nn.Linear(6, 6))
    return Equilibrium(Cell(), initial=start, gradient=gradient, **options), start, torch.randn(5, 6)


def test_the_loss_is_the_relative_squared_distance():
    start, x, z = LearnedStart(nn.Linear(6, 6)), torch.randn(5, 6), torch.randn(5, 6)
    weight, bias = start.network.weight.detach(), start.network.bias.detach()
    distance = scale = 0.0
    for row in range(5):
        for entry in range(6):
            proposed = float(sum(weight[entry] * x[row]) + bias[entry])
            distance += (proposed - float(z[row, entry])) ** 2
            scale += float(z[row, entry]) ** 2
    assert start.loss(z, x).item() == pytest.approx(distance / scale)
    assert start.loss(start(x), x).item() == 0


@pytest.mark.parametrize("gradient", [ImplicitGradient(), PhantomGradient(2), UnrolledGradient(8)])
def test_no_gradient_of_the_solution_reaches_the_start(gradient):
    layer, start, x = made(gradient)
    layer(x).square().sum().backward()
    assert all(parameter.grad is None for parameter in start.parameters())
    assert all(parameter.grad is not None for parameter in layer.cell.parameters())


def test_the_starts_loss_reaches_the_start_alone():
    layer, start, x = made()
    before = nn.Linear(6, 6)
    lifted = before(x)
    start.loss(layer(lifted), lifted).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in start.parameters())
    assert all(parameter.grad is None for parameter in (*layer.cell.parameters(), *before.parameters()))


def test_the_gradients_of_both_losses_together_are_those_of_each_alone():
    layer, start, x = made(rtol=1e-10)
    z = layer(x)
    (z.square().sum() + start.loss(z, x)).backward()
    plain = copy.deepcopy(layer)
    plain.zero_grad()
    z = plain(x)
    z.square().sum().backward()
    plain.initial.loss(z, x).backward()
    for both, alone in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(both.grad, alone.grad)


def test_the_solution_is_where_it_was():
    layer, _, x = made(rtol=1e-11)
    torch.testing.assert_close(layer(x), Equilibrium(layer.cell, rtol=1e-11)(x), rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")
def test_training_by_its_own_loss_saves_steps():
    """The map from inputs to solutions of a linear cell is linear, so that the start comes to know it."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, z, x):
            return 0.8 * self.inner(z) / torch.linalg.matrix_norm(self.inner.weight, 2) + x

    layer = Equilibrium(Linear(), solver=Picard(), rtol=1e-6, max_steps=300, initial=LearnedStart(nn.Linear(6, 6)))
    x = torch.randn(64, 6)
    first, value = layer.solve(x).steps.double().mean(), layer(x)
    optimizer = torch.optim.LBFGS(layer.initial.parameters(), max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = layer.initial.loss(layer(x), x)
        loss.backward()
        return loss

    optimizer.step(closure)
    after = layer.solve(x)
    assert after.steps.double().mean() < 0.7 * first
    torch.testing.assert_close(after.value, value, rtol=1e-4, atol=1e-5)


def test_states_may_be_nested():
    class Pair(nn.Module):
        def forward(self, z, x):
            return {"a": 0.5 * z["a"] + x, "b": 0.25 * z["a"] + 1}

    class Proposal(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return {"a": self.scale * x, "b": self.scale * x}

    start, x = LearnedStart(Proposal()), torch.randn(4, 3)
    z = Equilibrium(Pair(), initial=start, rtol=1e-9)(x)
    loss = start.loss(z, x)
    distance = (x - 2 * x).square().sum() + (x - 0.5 * x - 1).square().sum()
    assert loss.item() == pytest.approx(float(distance / ((2 * x).square() + (0.5 * x + 1).square()).sum()), rel=1e-6)
    loss.backward()
    assert start.network.scale.grad != 0


def test_what_is_no_start_is_refused():
    with pytest.raises(TypeError, match="network is a function"):
        LearnedStart(lambda x: x)
    start, x = LearnedStart(nn.Linear(6, 4)), torch.randn(5, 6)
    with pytest.raises(ValueError, match=r"the start has shapes \[\(5, 4\)\], the solution \[\(5, 6\)\]"):
        start.loss(torch.zeros(5, 6), x)


def test_autocast_between_solve_and_loss_keeps_the_starts_gradient():
    layer, start, x = made()
    layer.float()
    x = x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        start(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = start(x)
        assert not first.requires_grad
        start.loss(torch.ones(5, 6), x).backward()
    assert start.network.weight.grad.abs().sum() > 0


def test_a_network_of_infinite_depth_takes_it():
    reading = InfiniteDepth(initial=lambda blocks: LearnedStart(OptDNN("gd", [blocks.free()])))
    network, x = vector_network(3, 2, "pgd", reading=reading, width=6, hidden=8), torch.randn(4, 3)
    (deq,) = (layer for layer in network if isinstance(layer, OptDEQ))
    lifted = network[0](x)
    with record(values=True) as log:
        output = network(x)
    assert output.shape == (4, 2)
    assert log.forward[0].solution.trace[0].shape == (4,)
    residual = (deq.equilibrium.cell(deq.initial(lifted), lifted) - deq.initial(lifted)).norm(dim=1)
    torch.testing.assert_close(log.forward[0].solution.absolute[0], residual.to(log.forward[0].solution.absolute))
    assert isinstance(deq.initial.network.transforms[0], Dense)
    deq.initial.loss(deq(lifted), lifted).backward()
    assert network[0].weight.grad is None
