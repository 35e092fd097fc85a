"""A state that decays on its own, whatever is learned."""

import pytest
import torch
from torch import nn

from implicit import Equilibrium, Looped
from implicit.diagnostics import spectral_radius
from models import Conv, Dense, DiagonalInjection


def test_it_is_the_decayed_state_and_the_transform():
    cell, z, x = DiagonalInjection(Dense(4, 8, inputs=3), 4, decay=0.7), torch.randn(5, 4), torch.randn(5, 3)
    torch.testing.assert_close(cell.decay, torch.full((4,), 0.7))
    with torch.no_grad():
        cell.rate.copy_(torch.tensor([-3.0, 0.0, 1.0, 40.0]))
    expected = z / (1 + cell.rate.exp()) + cell.transform(z, x)  # exp(−softplus(a)) = 1 / (1 + eᵃ)
    torch.testing.assert_close(cell(z, x), expected)


def test_channels_of_pictures():
    cell, z = DiagonalInjection(Conv(4, 4), 4, dim=1), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        cell.rate.copy_(torch.randn(4))
    expected = cell.decay[None, :, None, None] * z + cell.transform(z)
    torch.testing.assert_close(cell(z), expected)


class Bounded(nn.Module):
    """At most 1 in each entry, and steep."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, z, x):
        return torch.tanh(20 * self.mix(z) + x)


@pytest.mark.parametrize("rate", [-2.0, 0.0, 3.0])
def test_the_state_stays_bounded_for_any_number_of_steps(rate):
    cell, x = DiagonalInjection(Bounded(), 6), torch.randn(8, 6)
    with torch.no_grad():
        cell.rate.fill_(rate)
        bound = 1 / (1 - cell.decay[0])
        z = Looped(cell, steps=3000)(x)
        grown = torch.zeros_like(x)
        for _ in range(3000):  # what a plain residual does
            grown = grown + cell.transform(grown, x)
    assert z.abs().max() <= bound * (1 + 1e-5)
    assert grown.abs().max() > 10 * bound


def test_the_linear_part_alone_contracts_whatever_its_weights():
    class Input(nn.Module):
        def forward(self, z, x):
            return x

    cell, x = DiagonalInjection(Input(), 3).double(), torch.randn(2, 3).double()
    with torch.no_grad():
        cell.rate.copy_(torch.tensor([-4.0, 0.0, 4.0]))
    layer = Equilibrium(cell, rtol=1e-10, max_steps=1000)
    torch.testing.assert_close(layer(x), x / (1 - cell.decay), rtol=1e-6, atol=0)
    assert spectral_radius(cell, layer(x).detach(), (x,)).max() < 1


def test_the_decay_is_learned():
    cell, x = DiagonalInjection(Dense(4, 8), 4), torch.randn(5, 4)
    Looped(cell, steps=5, initial=lambda: x)().square().sum().backward()
    assert (cell.rate.grad != 0).all()


@pytest.mark.parametrize("decay", [0, 1, -0.5, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="decay="):
        DiagonalInjection(nn.Identity(), 4, decay=decay)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="3 channels in dim -1, not 4"):
        DiagonalInjection(nn.Identity(), 4)(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"nn\.Module"):
        DiagonalInjection(torch.tanh, 4)
