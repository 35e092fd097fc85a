"""Numbers about a cell, where they are known in closed form."""

import pytest
import torch

from implicit.diagnostics import jacobian_penalty

from .cells import Cell, inputs, tight_layer, unrolled


def test_the_penalty_is_the_squared_norm_of_the_jacobian():
    matrix = torch.randn(5, 5, dtype=torch.float64)
    z = torch.randn(3, 5, dtype=torch.float64)
    estimate = jacobian_penalty(lambda z: z @ matrix.T, z, samples=4000)
    torch.testing.assert_close(estimate, matrix.square().sum() / 5, rtol=0.05, atol=0.0)
    # for a diagonal one each sample is exact
    factor = torch.linspace(-1, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(jacobian_penalty(lambda z: factor * z, z), factor.square().mean())


def test_its_gradient_is_that_of_the_norm():
    cell, x = Cell(1), torch.randn(4, 1, dtype=torch.float64)  # of one entry: the sign drops out
    z = torch.randn(4, 1, dtype=torch.float64)
    found = torch.autograd.grad(jacobian_penalty(cell, z, (x,)), list(cell.parameters()))
    weight, bias = (p.detach().clone().requires_grad_() for p in cell.parameters())
    slope = weight * (1 - torch.tanh(z @ weight.T + bias + x).square())
    for one, other in zip(found, torch.autograd.grad(slope.square().mean(), [weight, bias]), strict=True):
        torch.testing.assert_close(one, other)


def test_it_reaches_through_the_equilibrium():
    cell, x = Cell(1), torch.randn(4, 1, dtype=torch.float64)
    targets = list(cell.parameters())
    found = torch.autograd.grad(jacobian_penalty(cell, tight_layer(cell)(x), (x,)), targets)
    expected = torch.autograd.grad(jacobian_penalty(cell, unrolled(cell, x), (x,)), targets)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_training_with_it_lowers_the_spectral_norm_and_the_steps():
    torch.manual_seed(0)
    cell, x = Cell(24), torch.randn(16, 24, dtype=torch.float64)
    with torch.no_grad():
        cell.inner.weight.mul_(1.5)
    layer = tight_layer(cell)
    before, steps = torch.linalg.matrix_norm(cell.inner.weight, 2), layer.solve(x).steps.max()
    optimizer = torch.optim.Adam(cell.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        jacobian_penalty(cell, layer(x).detach(), (x,)).backward()
        optimizer.step()
    assert torch.linalg.matrix_norm(cell.inner.weight, 2) < 0.7 * before
    assert layer.solve(x).steps.max() < 0.8 * steps


def test_states_of_several_tensors_and_maps_without_a_derivative():
    z = (torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64))
    penalty = jacobian_penalty(lambda z: (2 * z[0], 3 * z[1]), z)
    torch.testing.assert_close(penalty, torch.tensor((2 * 4 + 4 * 9) / 6, dtype=torch.float64))
    assert jacobian_penalty(lambda z: torch.ones_like(z), z[0]) == 0
    assert jacobian_penalty(lambda z: 2 * z, torch.zeros(0, 3)) == 0


def test_without_gradients_it_is_a_number():
    with torch.no_grad():
        assert not jacobian_penalty(Cell(), inputs(), (inputs(),)).requires_grad


def test_bad_samples_are_named():
    with pytest.raises(ValueError, match="samples=0"):
        jacobian_penalty(Cell(), inputs(), (inputs(),), samples=0)


def test_inference_mode_changes_no_penalty_and_hidden_derivatives_are_refused():
    factor = torch.linspace(-1, 1, 5, dtype=torch.float64)
    with torch.inference_mode():
        z = torch.ones(2, 5, dtype=torch.float64)
        torch.testing.assert_close(jacobian_penalty(lambda z: factor * z, z), factor.square().mean())
    with pytest.raises(ValueError, match="jacobian_penalty: f depends on z"):
        jacobian_penalty(torch.no_grad()(lambda z: 2 * z), torch.ones(2, 3))
