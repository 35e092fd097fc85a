"""Supervised segments against a loop that detaches the state by hand."""

import pytest
import torch
from torch import nn

from implicit import Equilibrium, Looped
from models import segments
from solvers import Picard


class Levels(nn.Module):
    """A state of two parts."""

    def __init__(self):
        super().__init__()
        self.low, self.high, self.inject = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, z, x):
        high, low = z
        low = torch.tanh(0.5 * self.low(low) + 0.3 * high + self.inject(x))
        return torch.tanh(0.5 * self.high(high) + 0.5 * low), low


def start(x):
    return torch.zeros_like(x), torch.zeros_like(x)


@pytest.fixture
def cell():
    torch.manual_seed(0)
    return Levels().double()


@pytest.fixture
def x():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)


def gradients(loss, cell, x):
    return torch.autograd.grad(loss, [x, *cell.parameters()])


@pytest.mark.parametrize("tracked", [1, 2, None])
def test_each_segment_is_the_loop_from_a_detached_state(cell, x, tracked):
    z = start(x)
    for found in segments(Looped(cell, steps=3, tracked=tracked, initial=start), x, count=4):
        z = tuple(part.detach() for part in z)
        for step in range(3):
            with torch.set_grad_enabled(tracked is None or step >= 3 - tracked):
                z = cell(z, x)
        for part, other in zip(found, z, strict=True):
            assert torch.equal(part, other)
        for one, other in zip(
            gradients(found[0].sin().sum(), cell, x), gradients(z[0].sin().sum(), cell, x), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_the_optimiser_may_step_between_two_segments(cell, x):
    optimizer = torch.optim.SGD(cell.parameters(), lr=0.1)
    values = []
    for z in segments(Looped(cell, steps=2, initial=start), x, count=3):
        optimizer.zero_grad()
        z[0].square().sum().backward()
        optimizer.step()
        values.append(z)
    assert len(values) == 3
    with torch.no_grad():  # the weights have changed since
        stale = Looped(cell, steps=2)(x, z0=values[0])
    assert not torch.allclose(stale[0], values[1][0])


def test_an_equilibrium_goes_on_from_where_it_stopped(cell, x):
    layer = Equilibrium(cell, initial=start, solver=Picard(), rtol=1e-10, max_steps=3)
    with pytest.warns(UserWarning, match="rows"):
        *_, z = segments(layer, x, count=30)
    layer.max_steps = 500
    exact = layer(x)
    assert not torch.allclose(layer.solve(x, max_steps=3).value[0], exact[0], atol=1e-6)
    torch.testing.assert_close(z[0], exact[0], rtol=0, atol=1e-6)


def test_keywords_and_the_start_reach_the_layer(cell, x):
    first = tuple(torch.ones_like(x) for _ in range(2))
    (found,) = segments(Looped(cell, steps=9), x, count=1, z0=first, steps=2)
    expected = cell(cell(first, x), x)
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_count_that_is_none_is_refused_at_once(cell, x, count):
    with pytest.raises(ValueError, match="count="):
        segments(Looped(cell, steps=1, initial=start), x, count=count)


def test_what_is_no_layer_is_refused(cell, x):
    with pytest.raises(TypeError, match="Looped"):
        segments(cell, x, count=2)


def test_an_input_with_a_graph_is_made_anew_for_each_segment(cell):
    tokens, embedding = torch.arange(3), nn.Embedding(3, 4, dtype=torch.float64)
    looped, wanted = Looped(cell, steps=2, initial=start), [*embedding.parameters(), *cell.parameters()]
    totals = [torch.zeros_like(each) for each in wanted]
    for z in segments(looped, lambda: embedding(tokens), count=3):
        for sum_, each in zip(totals, torch.autograd.grad(z[0].sin().sum(), wanted), strict=True):
            sum_ += each
    z, loss = start(embedding(tokens)), 0
    for _ in range(3):
        for _ in range(2):
            z = cell(z, embedding(tokens))
        loss = loss + z[0].sin().sum()
        z = tuple(part.detach() for part in z)
    torch.testing.assert_close(totals, list(torch.autograd.grad(loss, wanted)))


@pytest.mark.parametrize("function", [nn.ReLU(), torch.relu, lambda v: v.relu()], ids=["module", "builtin", "lambda"])
def test_a_function_that_the_cell_takes_is_passed_on(function):
    class Activated(nn.Module):
        def forward(self, z, x, activation):
            return 0.5 * activation(z) + x

    x, layer = torch.randn(3, 4), Looped(Activated(), steps=2)
    found = list(segments(layer, x, activation=function, count=2))
    z = layer(x, activation=function)
    assert torch.equal(found[0], z)
    assert torch.equal(found[1], layer(x, activation=function, z0=z))
