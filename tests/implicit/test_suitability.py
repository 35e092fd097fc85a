"""Cells that cannot work are told so, and what is offered instead works."""

import pytest
import torch
from torch import nn

from implicit import Equilibrium, LockedDropout, fixed_point

from .cells import DIM, Cell, exact, inputs, tight_layer, unrolled


class With(nn.Module):
    """A contraction with a further module inside."""

    def __init__(self, inside):
        super().__init__()
        self.inner, self.inside = Cell(), inside

    def forward(self, z, x):
        return self.inner(0.1 * self.inside(z), x)


UNSUITABLE = [
    (nn.BatchNorm1d(DIM, dtype=torch.float64), r"inside \(BatchNorm1d\) couples the rows.*GroupNorm or LayerNorm"),
    (nn.Dropout(0.3), r"inside \(Dropout\) draws a new mask.*LockedDropout"),
    (nn.AlphaDropout(0.3), r"inside \(AlphaDropout\) draws a new mask"),
]


@pytest.mark.parametrize(("inside", "match"), UNSUITABLE, ids=lambda value: type(value).__name__)
@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning", "ignore:evaluating the cell again")
def test_unsuitable_modules_are_named(inside, match):
    layer, x = Equilibrium(With(inside).to(torch.get_default_device()), compact=False, max_steps=3), inputs(4)
    for call in (lambda: layer(x), lambda: layer.solve(x), lambda: fixed_point(layer.cell, x, (x,), max_steps=3)):
        with pytest.warns(RuntimeWarning, match=match):
            call()
    layer.eval()
    layer(x)  # warnings are errors


def test_several_are_named_together():
    inside = nn.Sequential(nn.BatchNorm1d(DIM, dtype=torch.float64), nn.Dropout())
    layer = Equilibrium(With(inside), compact=False, max_steps=1, rtol=10.0)
    with pytest.warns(RuntimeWarning, match=r"inside.0 \(BatchNorm1d\).*inside.1 \(Dropout\)"):
        layer.solve(inputs())


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")
def test_chance_that_no_module_shows_is_noticed(compact):
    class Noisy(nn.Module):
        def forward(self, z, x):
            return 0.5 * z + x * (1 + 0.1 * torch.rand_like(z))

    layer = Equilibrium(Noisy(), compact=compact, rtol=1e-4)
    with pytest.warns(RuntimeWarning, match="not deterministic"):
        layer(inputs())


def test_a_cell_that_writes_in_place_is_refused():
    class InPlace(nn.Module):
        def forward(self, z, x):
            return z.mul_(0.5).add_(x)

    with pytest.raises(ValueError, match="f writes into its argument"):
        Equilibrium(InPlace())(inputs())


# --- locked dropout ------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = Cell()

    def forward(self, z, x, mask):
        return self.cell(z * mask, x)


def test_a_mask_is_dropouts():
    dropout = LockedDropout(0.25)
    mask = dropout(torch.zeros(400, 50))
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(mask.mean() - 1) < 0.02
    assert len(mask.unique(dim=0)) == 400
    assert torch.equal(dropout.eval()(torch.zeros(3, 5)), torch.ones(3, 5))


def test_a_mask_of_whole_channels():
    mask = LockedDropout(0.5, shared=(2, 3))(torch.zeros(8, 16, 4, 4, dtype=torch.float64))
    assert mask.shape == (8, 16, 1, 1)
    assert mask.dtype == torch.float64


def test_the_mask_is_one_through_a_solve_and_follows_dropped_rows():
    layer, dropout, x = tight_layer(Masked()), LockedDropout(0.4), inputs(8)
    mask = dropout(x)
    start = torch.zeros_like(x)
    start[::2] = layer.solve(x, mask).value[::2]  # half of the rows are dropped at once
    z = layer(x, mask, z0=start)
    expected = unrolled(lambda z, x: layer.cell(z, x, mask), x)
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)
    targets = [x, *layer.parameters()]
    for one, other in zip(*(torch.autograd.grad(v.sin().sum(), targets) for v in (z, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: LockedDropout(1.0), r"p=1.0 must be a number in \[0, 1\)"),
        (lambda: LockedDropout(float("nan")), "p=nan"),
        (lambda: LockedDropout(0.5, shared=(0,)), r"shared=\(0,\) must be a tuple of dims from 1"),
        (lambda: LockedDropout(0.5, shared=(3,))(torch.zeros(2, 2)), r"names a dim beyond shape \(2, 2\)"),
    ],
)
def test_bad_settings_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_its_gradient_is_used_in_training():
    layer, dropout = Equilibrium(Masked(), gradient=exact()), LockedDropout(0.4)
    x = inputs()
    assert not torch.equal(layer(x, dropout(x)), layer(x, dropout(x)))
    dropout.eval()
    assert torch.equal(layer(x, dropout(x)), layer(x, dropout(x)))
