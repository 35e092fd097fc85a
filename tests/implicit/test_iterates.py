"""Fixed-point correction: iterates on the way, each with a gradient of its own."""

import pytest
import torch
from torch import nn

from implicit import ConvergenceWarning, Equilibrium, fixed_point
from solvers import Anderson, Broyden, Eager, Monotone, NewtonKrylov, Picard, Reversible

from .cells import Cell, inputs, tight_layer


def test_the_iterates_are_those_of_the_solver():
    cell, x = Cell(), inputs()
    layer = tight_layer(cell, solver=Picard())
    *early, z = layer.iterates(x, at=(0, 1, 3))
    point = torch.zeros_like(x)
    for step in range(4):
        if step in (0, 1, 3):
            torch.testing.assert_close(early.pop(0), point)
        point = cell(point, x)
    assert torch.equal(z, layer(x))


@pytest.mark.parametrize("options", [{"compact": True}, {"compact": False}, {"compact": False, "loop": Eager(3)}])
@pytest.mark.parametrize("solver", [Picard(), Picard(0.5), Anderson(), Broyden(), Monotone(), Reversible()], ids=repr)
def test_a_row_that_has_stopped_goes_on(solver, options):
    cell, x, at = Cell(), inputs(8), (0, 2, 5, 12)
    start = torch.zeros_like(x)
    start[::2] = tight_layer(cell).solve(x).value[::2] + 1e-6
    layer = Equilibrium(cell, solver=solver, rtol=1e-3, **options)
    *found, z = layer.iterates(x, at=at, z0=start)
    assert torch.equal(z, layer(x, z0=start))
    assert (layer.solve(x, z0=start).steps < at[-1]).any()
    *expected, _ = tight_layer(cell, solver=solver, max_steps=2000).iterates(x, at=at, z0=start)  # none stops by then
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_beyond_the_budget_and_where_nothing_settles():
    start = torch.tensor([[1.0, 0.5]])
    layer = Equilibrium(Turn(), solver=Picard(), max_steps=40)
    with pytest.warns(ConvergenceWarning):
        *found, z = layer.iterates(start, at=(30, 66, 101), z0=start)
    assert torch.equal(z, start)
    for one, other in zip(found, (-start, -start, torch.tensor([[0.5, -1.0]])), strict=True):
        torch.testing.assert_close(one, other)


def test_a_row_that_cannot_be_improved_has_its_solution():
    cell, x = Cell(), inputs()
    z = tight_layer(cell).solve(x).value
    early, late, _ = Equilibrium(cell, solver=NewtonKrylov()).iterates(x, at=(3, 30), z0=z)
    torch.testing.assert_close(early, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(late, z, rtol=1e-9, atol=1e-9)


class Turn(nn.Module):
    """A quarter of a turn."""

    def forward(self, z, x):
        return torch.stack([z[:, 1], -z[:, 0]], 1) + 0 * x


def test_their_gradient_is_that_of_one_evaluation():
    cell, x = Cell(), inputs()
    layer = tight_layer(cell, solver=Picard())
    targets = [x, *cell.parameters()]
    early, z = layer.iterates(x, at=(2,))
    found = torch.autograd.grad(early.sin().sum(), targets, retain_graph=True)
    point = early.detach()
    expected = torch.autograd.grad(cell(point, x), targets, grad_outputs=point.cos())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    exactly = torch.autograd.grad(layer(x).sin().sum(), targets)
    for one, other in zip(torch.autograd.grad(z.sin().sum(), targets), exactly, strict=True):
        torch.testing.assert_close(one, other)


def test_correction_makes_early_iterates_useful():
    def loss_of_early_iterates_after_training(weight):
        torch.manual_seed(0)
        cell, head, x = Cell(8).float(), nn.Linear(8, 1), torch.randn(64, 8)
        target = x[:, :3].sum(1, keepdim=True).tanh()
        layer = Equilibrium(cell, rtol=1e-5)
        optimizer = torch.optim.Adam([*cell.parameters(), *head.parameters()], lr=3e-3)
        for _ in range(80):
            optimizer.zero_grad()
            early, z = layer.iterates(x, at=(1,))
            loss = sum(w * (head(state) - target).square().mean() for w, state in ((weight, early), (1.0, z)))
            loss.backward()
            optimizer.step()
        return (head(layer.iterates(x, at=(1,))[0]) - target).square().mean()

    assert loss_of_early_iterates_after_training(4.0) < 0.9 * loss_of_early_iterates_after_training(0.0)


def test_without_gradients_and_for_several_tensors():
    x = inputs()

    class Pair(nn.Module):
        def forward(self, z, x):
            return 0.5 * z[1] + x, 0.5 * z[0]

    layer = Equilibrium(Pair(), initial=lambda x: (torch.zeros_like(x), torch.zeros_like(x)))
    with torch.no_grad():
        early, z = layer.iterates(x, at=(1,))
    assert not early[0].requires_grad
    torch.testing.assert_close(early[0], x)
    torch.testing.assert_close(z[0], 4 / 3 * x.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("at", [3, (-1,), (1.5,)])
def test_bad_steps_are_named(at):
    with pytest.raises(ValueError, match="must be a tuple of numbers of steps"):
        tight_layer().iterates(inputs(), at=at)


def test_a_function_has_none():
    assert isinstance(fixed_point(torch.cos, torch.zeros(2, 1)), torch.Tensor)


@pytest.mark.filterwarnings("ignore:the rows depend on each other")
@pytest.mark.parametrize("loop", [Eager(), Eager(3)], ids=repr)
def test_coupled_rows_have_iterates(loop):
    """Rows found to be coupled are solved as one problem, in fewer steps than the iterates insist on."""

    class Coupled(nn.Module):
        def forward(self, z, x):
            return 0.5 * torch.tanh(z + x) + 0.3 * z.mean(0, keepdim=True)

    layer = Equilibrium(Coupled(), solver=Monotone(3), loop=loop, compact=False)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), device="cpu").to(inputs().device)
    *early, last = layer.iterates(x, at=(0, 3, 9))
    assert all(torch.isfinite(z).all() for z in early)
    torch.testing.assert_close(layer.cell(last, x), last, rtol=1e-3, atol=1e-3)
