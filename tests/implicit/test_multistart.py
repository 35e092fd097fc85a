"""Several starts for each row, against a loop over them."""

import pytest
import torch
from torch import nn

from implicit import Equilibrium, Looped, multistart
from solvers import Picard


class TwoWells(nn.Module):
    """`z ↦ z − step·(z³ − z) + pull·x` in each entry: fixed points near −1 and 1."""

    def __init__(self):
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def forward(self, z, x):
        return z - self.step * (z**3 - z) + 0.01 * x


class Pair(nn.Module):
    """Two independent parts."""

    def __init__(self):
        super().__init__()
        self.one, self.other = TwoWells(), TwoWells()

    def forward(self, z, x):
        return self.one(z[0], x), self.other(z[1], x)


@pytest.fixture
def x():
    return torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def draws(own, starts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = own.square().mean(dim=1, keepdim=True).sqrt()
    shape = 1, *own.shape[1:]
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(starts - 1)]


@pytest.mark.parametrize(
    "layer",
    [Equilibrium(TwoWells(), solver=Picard(), rtol=1e-6, max_steps=12, initial=torch.cos), Looped(TwoWells(), steps=7)],
    ids=["equilibrium", "looped"],
)
def test_each_row_keeps_its_best_start(layer, x):
    found = multistart(layer, x, starts=5)
    own = layer.solve(x)
    every = [own, *(layer.solve(x, z0=z0) for z0 in draws(own.value, 5))]
    assert len({solution.residual[0].item() for solution in every}) > 1
    for row in range(len(x)):
        ranked = sorted(range(5), key=lambda s: (not every[s].converged[row], every[s].residual[row].item()))
        best = every[ranked[0]]
        assert found.start[row] == ranked[0]
        assert torch.equal(found.value[row], best.value[row])
        assert found.residual[row] == best.residual[row]
        assert found.status[row] == best.status[row]
        assert found.steps[row] == best.steps[row]
        assert found.evaluations[row] == sum(solution.evaluations[row] for solution in every)
        torch.testing.assert_close(found.trace[: len(best.trace), row], best.trace[:, row], equal_nan=True)
        assert found.trace[len(best.trace) :, row].isnan().all()
        distances = [(solution.value[row] - best.value[row]).norm() / best.value[row].norm() for solution in every]
        assert found.agreed[row] == sum(distance <= 0.01 for distance in distances)
    assert torch.equal(found.residuals, torch.stack([solution.residual for solution in every]))


def test_it_says_how_many_agreed(x):
    several = multistart(Equilibrium(TwoWells(), solver=Picard()), x, starts=6)
    assert (several.agreed < 6).any(), "two wells in each of three entries"
    assert "of 6 starts agree" in repr(several)
    assert several.to_dict()["agreed"] == several.agreed.tolist()
    assert multistart(Looped(TwoWells(), steps=1), x, starts=1).agreed.tolist() == [1] * 6
    contraction = nn.Linear(3, 3).double()
    with torch.no_grad():
        contraction.weight.mul_(0.3)

    class Affine(nn.Module):
        def forward(self, z, x):
            return contraction(z) + x

    unique = multistart(Equilibrium(Affine(), rtol=1e-8), x, starts=4)
    assert unique.agreed.tolist() == [4] * 6
    assert repr(unique).endswith("4 of 4 starts agree)")


def test_what_did_not_converge_or_broke_is_no_choice():
    class Broken(nn.Module):
        """A fixed point at 0, from where it starts; not finite elsewhere."""

        def forward(self, z, x):
            return torch.where(z.abs().amax(dim=1, keepdim=True) > 1e-3, torch.nan, 0.5 * z) + 0 * x

    found = multistart(Equilibrium(Broken()), torch.ones(2, 3), z0=torch.full((2, 3), 1e-4), starts=3)
    assert found.start.tolist() == [0, 0]
    assert found.value.isfinite().all()


def test_a_state_of_parts_and_a_gradient_from_there(x):
    layer = Equilibrium(Pair(), solver=Picard(), initial=lambda x: (x, -x), rtol=1e-8, max_steps=300)
    found = multistart(layer, x, starts=4).check()
    z = layer(x, z0=found.value)
    for part, other in zip(z, found.value, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=1e-6)
    z[0].sum().backward()
    assert layer.cell.one.step.grad.isfinite()


def test_another_seed_is_other_starts(x):
    layer = Looped(TwoWells(), steps=1)
    first, again, other = (multistart(layer, x, starts=3, seed=seed).residuals for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first[1:], other[1:])


@pytest.mark.parametrize(
    ("arguments", "error", "why"),
    [
        ({"starts": 0}, ValueError, "starts=0"),
        ({"starts": 2.0}, ValueError, "starts=2.0"),
        ({"agreement": -1}, ValueError, "agreement=-1"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(x, arguments, error, why):
    with pytest.raises(error, match=why):
        multistart(Looped(TwoWells(), steps=1), x, **arguments)


def test_what_is_no_layer_is_refused(x):
    with pytest.raises(TypeError, match="Looped"):
        multistart(TwoWells(), x)


def test_a_row_has_the_same_starts_alone(x):
    layer = Equilibrium(TwoWells(), solver=Picard(), rtol=1e-6, initial=torch.cos)
    whole = multistart(layer, x, starts=6)
    alone = [multistart(layer, row[None], starts=6) for row in x]
    assert torch.equal(whole.start, torch.cat([found.start for found in alone]))
    torch.testing.assert_close(whole.value, torch.cat([found.value for found in alone]), rtol=1e-9, atol=1e-12)
