"""Peaceman–Rachford splitting: dense linear algebra and the textbook's loop as independent routes."""

import copy

import pytest
import torch
from torch import nn

from implicit import Equilibrium, ImplicitGradient, SplitCell, SplittingGradient, UnrolledGradient, record
from models.mondeq import MonotoneCell, mondeq
from solvers import Anderson, Eager, Monotone, PeacemanRachford, Status, solve

GAINS = (1.0, 3.0, 10.0)


def monotone_cell(width, gain, dtype=torch.float64, inputs=5):
    torch.manual_seed(0)
    cell = MonotoneCell(width, inputs).to(dtype)
    with torch.no_grad():
        cell.symmetric.mul_(gain)
        cell.skew.mul_(gain)
    return cell


def layer_of(cell, rtol=1e-10, solver=PeacemanRachford(), **options):
    return Equilibrium(cell, solver=solver, gradient=SplittingGradient(rtol=rtol), rtol=rtol, atol=0.0, **options)


def textbook(weight, shift, alpha, steps):
    """`z` by resolvent and projection in turn, both applied as they are defined."""
    system = torch.eye(len(weight), dtype=weight.dtype) + alpha * (torch.eye(len(weight), dtype=weight.dtype) - weight)
    z = u = torch.zeros_like(shift)
    for _ in range(steps):
        half = 2 * z - u
        middle = torch.linalg.solve(system, (half + alpha * shift).mT).mT
        u = 2 * middle - half
        z = u.relu()
    return z


class Contraction(SplitCell):
    """Norm 0.9, σ of choice, on states of two dims."""

    def __init__(self, activation, shape=(2, 3)):
        super().__init__(margin=0.1, activation=activation)
        self.shape, self.matrix = shape, nn.Parameter(torch.randn(6, 6, dtype=torch.float64))

    def weight(self):
        return 0.9 * self.matrix / torch.linalg.matrix_norm(self.matrix, 2)

    def shift(self, x):
        return x.sin().view(-1, *self.shape)


@pytest.mark.parametrize("gain", GAINS)
def test_every_row_is_solved_as_by_the_textbook(gain):
    cell, x = monotone_cell(20, gain), torch.randn(32, 5, dtype=torch.float64)
    solution = layer_of(cell).solve(x).check()
    image = cell(solution.value, x)
    assert (
        torch.linalg.vector_norm(image - solution.value, dim=1) <= 1e-10 * torch.linalg.vector_norm(image, dim=1)
    ).all()
    with torch.no_grad():
        expected = textbook(cell.weight(), cell.shift(x), 0.3, 2000)
    torch.testing.assert_close(solution.value, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("gain", GAINS)
def test_every_row_of_a_batch_in_single_precision_is_solved_both_ways(gain, width):
    cell, x = monotone_cell(width, gain, torch.float32), torch.randn(64, 5, dtype=torch.float32)
    layer = layer_of(cell, rtol=1e-5)
    with record() as log:
        layer(x).square().mean().backward()
    for entry in (*log.forward, *log.backward):
        assert entry.solution.converged.all()
        assert entry.solution.steps.max() <= 8


@pytest.mark.parametrize("gain", GAINS)
def test_the_gradient_is_that_of_dense_linear_algebra(gain):
    cell, x = monotone_cell(12, gain), torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randn(6, 12, dtype=torch.float64)
    leaves = (x, *cell.parameters())
    found = torch.autograd.grad((layer_of(cell)(x) * target).sum(), leaves)
    weight, shift = cell.weight(), cell.shift(x)
    active = (cell(layer_of(cell)(x), x) > 0).double()
    # where D = diag(active), z = (I − D W)⁻¹ D c
    eye = torch.eye(12, dtype=torch.float64)
    z = torch.linalg.solve(eye - active[:, :, None] * weight, active * shift)
    expected = torch.autograd.grad((z * target).sum(), leaves)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_the_gradient_is_that_of_an_unrolled_contraction():
    torch.manual_seed(0)
    cell, x = Contraction(torch.relu), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    unrolled = Equilibrium(cell, gradient=UnrolledGradient(400), rtol=1e-10, max_steps=400)
    leaves = (x, cell.matrix)
    found = [torch.autograd.grad(layer(x).cos().sum(), leaves) for layer in (layer_of(cell), unrolled)]
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("activation", [torch.relu, nn.ReLU(), torch.tanh, torch.sigmoid, nn.Softplus(), nn.ELU()])
def test_first_and_second_derivatives_for_any_activation(activation):
    torch.manual_seed(0)
    cell, x = Contraction(activation), torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    layer = layer_of(cell, rtol=1e-12, max_steps=400)
    assert layer(x).shape == (2, 2, 3)

    def f(x, matrix):
        twin = copy.deepcopy(layer)
        del twin.cell.matrix
        twin.cell.matrix = matrix
        return twin(x)

    arguments = (x, cell.matrix)
    torch.autograd.gradcheck(f, arguments)
    if activation is torch.tanh:
        torch.autograd.gradgradcheck(f, arguments)


def test_transforms_of_torch_func_reach_through():
    cell, x = monotone_cell(8, 3.0), torch.randn(4, 5, dtype=torch.float64)
    layer = layer_of(cell)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: layer(row[None])[0]))(x)
    expected = torch.autograd.functional.jacobian(layer, x).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    torch.testing.assert_close(jacobians, expected, rtol=1e-6, atol=1e-8)


def test_new_weights_are_seen_at_once():
    cell, x = monotone_cell(8, 1.0), torch.randn(4, 5, dtype=torch.float64)
    layer = layer_of(cell).eval()
    layer(x)
    cell.symmetric.data.mul_(3)  # which no version counter sees
    torch.testing.assert_close(cell(layer(x), x), layer(x), rtol=1e-9, atol=1e-9)


def test_a_warm_start_costs_a_look_and_rows_do_not_see_each_other():
    cell, x = monotone_cell(16, 3.0), torch.randn(8, 5, dtype=torch.float64)
    layer = layer_of(cell)
    solution = layer.solve(x)
    again = layer.solve(x, z0=solution.value)
    assert (again.steps == 1).all()
    assert (solution.evaluations == 1 + 9 * (solution.steps - 1)).all()
    alone = torch.cat([layer(row[None]) for row in x])
    torch.testing.assert_close(alone, solution.value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("check_every", [2, 5, 300])
def test_looking_less_often_counts_the_same_evaluations(check_every, compact):
    cell, x = monotone_cell(8, 3.0), torch.randn(6, 5, dtype=torch.float64) * 10.0 ** torch.arange(-4.0, 2.0)[:, None]
    expected, found = (
        layer_of(cell, solver=PeacemanRachford(inner_steps=3), loop=loop, compact=compact, max_steps=300).solve(x)
        for loop in (Eager(), Eager(check_every))
    )
    assert len(set(expected.check().steps.tolist())) > 1
    assert torch.equal(expected.evaluations, 1 + 4 * (expected.steps - 1))
    assert torch.equal(found.steps, expected.steps)
    assert torch.equal(found.evaluations, expected.evaluations)


def test_a_cell_runs_under_solve_with_rows_dropped_and_under_other_solvers():
    cell, x = monotone_cell(16, 1.0), torch.randn(8, 5, dtype=torch.float64)
    z0 = torch.randn(8, 16, dtype=torch.float64)
    options = {"rtol": 1e-9, "max_steps": 300}
    found = solve(cell, z0, (x,), solver=PeacemanRachford(inner_steps=1), compact=True, **options).check().value
    for solver in (PeacemanRachford(step_size=1.0), Monotone(), Anderson()):
        other = Equilibrium(cell, solver=solver, gradient=ImplicitGradient(), **options).solve(x).check().value
        torch.testing.assert_close(other, found, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")
def test_a_broken_promise_and_weights_that_ran_away_show_in_the_status():
    torch.manual_seed(0)
    cell = Contraction(torch.relu, (6,))
    cell.weight = lambda: torch.eye(6, dtype=torch.float64) + cell.matrix.abs()  # nothing monotone: f runs away
    x = 1 + torch.rand(3, 6, dtype=torch.float64)
    assert not layer_of(cell).solve(x).converged.any()
    broken = monotone_cell(8, float("nan"))
    status = layer_of(broken).solve(torch.randn(3, 5, dtype=torch.float64)).status
    assert (status == Status.NON_FINITE).all()


def test_what_it_cannot_do_it_refuses():
    x = torch.randn(2, 6, dtype=torch.float64)
    with pytest.raises(TypeError, match="no method split"):
        solve(torch.cos, x, solver=PeacemanRachford())
    with pytest.raises(RuntimeError, match="run it through solve"):
        PeacemanRachford().init(x)
    with pytest.raises(ValueError, match="step_size=0 must be a positive number"):
        PeacemanRachford(step_size=0)
    with pytest.raises(ValueError, match="inner_steps=0 must be an integer"):
        PeacemanRachford(inner_steps=0)
    with pytest.raises(ValueError, match="step_size=2 needs a cell with the ReLU"):
        layer_of(Contraction(torch.tanh), solver=PeacemanRachford(step_size=2))(x)
    with pytest.raises(ValueError, match=r"a state of 3 entries needs \(3, 3\)"):
        solve(Contraction(torch.relu, (3,)), x[:, :3], (x[:, :3],), solver=PeacemanRachford())
    with pytest.raises(TypeError, match="solver is Anderson"):
        Equilibrium(monotone_cell(8, 1.0), gradient=SplittingGradient())
    with pytest.raises(ValueError, match="margin=0 must be positive"):
        SplitCell(margin=0)


def test_mondeq_takes_other_solvers():
    for solver in (PeacemanRachford(), Monotone()):
        network = mondeq(5, 3, width=8, solver=solver)
        network(torch.randn(4, 5)).sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
