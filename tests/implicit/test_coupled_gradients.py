"""Gradients where the rows of a batch depend on each other, against a dense Newton solve and a dense adjoint one."""

import pytest
import torch
from torch import nn

import solvers
from implicit import (
    Equilibrium,
    ImplicitGradient,
    NeumannGradient,
    PhantomGradient,
    ReversibleGradient,
    ShineGradient,
    Unconverged,
    UnrolledGradient,
    fixed_point,
    record,
    root,
)
from solvers import GMRES, Anderson, Broyden, NewtonKrylov, Picard, Reversible

ROWS, DIM = 8, 5
DOUBLE = {"dtype": torch.float64}
pytestmark = pytest.mark.filterwarnings("ignore:the rows", "ignore:rows that had stopped")


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        adjacency = torch.rand(ROWS, ROWS, **DOUBLE)
        self.register_buffer("adjacency", adjacency / adjacency.sum(1, keepdim=True))
        self.weight = nn.Parameter(0.8 * torch.linalg.qr(torch.randn(DIM, DIM, **DOUBLE)).Q)

    def forward(self, z, x):
        return torch.tanh(self.adjacency @ z @ self.weight + x)


class BatchStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(DIM, DIM, **DOUBLE)

    def forward(self, z, x):
        y = self.linear(z)
        return torch.tanh(0.5 * (y - y.mean(0)) / (0.5 + y.std(0)) + x)


class AcrossTheBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(DIM, DIM, **DOUBLE)

    def forward(self, z, x):
        return torch.tanh(0.7 * torch.softmax(self.linear(z) @ z.mT, 1) @ z + x)


class Chain(nn.Module):
    """Each row hangs on the next: far from normal."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.diag(torch.full((ROWS - 1,), 0.9, **DOUBLE), 1))

    def forward(self, z, x):
        return self.weight @ z.sin() + x


CELLS = [Graph, BatchStatistics, AcrossTheBatch, Chain]


def reference(cell, x, weight):
    """The gradients of `(z · weight).sum()` in x and the parameters."""

    def residual(flat):
        z = flat.view_as(x)
        return (z - cell(z, x)).flatten()

    z = torch.zeros_like(x).flatten().detach()
    for _ in range(60):
        step = torch.linalg.solve(torch.autograd.functional.jacobian(residual, z), residual(z).detach())
        z = z - step
        if step.norm() < 1e-14 * z.norm():
            break
    jacobian = torch.autograd.functional.jacobian(residual, z)
    u = torch.linalg.solve(jacobian.mT, weight.flatten()).view_as(x)
    return z.view_as(x), torch.autograd.grad((cell(z.view_as(x), x) * u).sum(), [x, *cell.parameters()])


def joined(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def setting(kind):
    torch.manual_seed(0)
    cell, x = kind(), torch.randn(ROWS, DIM, **DOUBLE, requires_grad=True)
    weight = torch.randn(ROWS, DIM, **DOUBLE) * torch.logspace(-6, 2, ROWS, **DOUBLE)[:, None]
    weight[3] = 0  # a row that the loss does not ask for, and that others need
    return cell, x, weight


GRADIENTS = [
    ImplicitGradient(rtol=1e-9),
    ImplicitGradient(GMRES(), rtol=1e-9),
    ImplicitGradient(Picard(), rtol=1e-9, max_steps=400),
    ImplicitGradient(Broyden(), rtol=1e-9),
    NeumannGradient(400),
    PhantomGradient(400),
    UnrolledGradient(400),
]


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=repr)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
@pytest.mark.parametrize("kind", CELLS)
def test_every_policy_is_right(kind, gradient, solver, compact):
    cell, x, weight = setting(kind)
    z, expected = reference(cell, x, weight)
    layer = Equilibrium(cell, solver=solver, gradient=gradient, rtol=1e-11, max_steps=400, compact=compact)
    found = layer(x)
    torch.testing.assert_close(found, z, rtol=1e-7, atol=1e-8)
    gradients = joined(torch.autograd.grad((found * weight).sum(), [x, *cell.parameters()]))
    assert (gradients - joined(expected)).norm() < 1e-6 * joined(expected).norm()


@pytest.mark.parametrize("kind", CELLS)
def test_a_start_from_the_inverse_that_was_learned_is_only_a_start(kind):
    cell, x, weight = setting(kind)
    _, expected = reference(cell, x, weight)
    layer = Equilibrium(cell, rtol=1e-11, max_steps=400, gradient=ImplicitGradient(rtol=1e-9, reuse=True))
    gradients = joined(torch.autograd.grad((layer(x) * weight).sum(), [x, *cell.parameters()]))
    assert (gradients - joined(expected)).norm() < 1e-6 * joined(expected).norm()


@pytest.mark.parametrize("kind", CELLS[:3])  # no row of the last stops before others, so its coupling is not noticed
def test_histories_of_single_rows_say_nothing_about_the_batch(kind):
    cell, x, weight = setting(kind)
    found = []
    for policy in (ShineGradient(), PhantomGradient()):
        layer = Equilibrium(cell, rtol=1e-11, max_steps=400, gradient=policy)
        found.append(joined(torch.autograd.grad((layer(x) * weight).sum(), [x, *cell.parameters()])))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("solver", [Anderson(), GMRES(), NewtonKrylov()], ids=repr)
def test_functions_and_second_derivatives(solver):
    cell, x, _ = setting(Graph)
    forward = Anderson() if isinstance(solver, GMRES) else solver
    options = {"solver": forward, "rtol": 1e-13, "max_steps": 400}

    def second(z):
        (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), (x, cell.weight))

    gradient = ImplicitGradient(Anderson() if isinstance(solver, NewtonKrylov) else solver, rtol=1e-12, max_steps=400)
    found = second(fixed_point(cell, torch.zeros_like(x), (x,), gradient=gradient, **options))
    z = torch.zeros_like(x)
    for _ in range(300):
        z = cell(z, x)
    for one, other in zip(found, second(z), strict=True):
        assert (one - other).norm() < 1e-7 * other.norm()


def test_a_gradient_whose_rows_differ_by_many_orders_stays_in_range():
    gradient, x = ImplicitGradient(rtol=1e-6), torch.randn(3, DIM, requires_grad=True)
    z = fixed_point(lambda z, x: 0.5 * z + x, torch.zeros_like(x), (x,), rtol=1e-6, gradient=gradient)
    weight = torch.tensor([1e-15, 1.0, 1e15])[:, None].expand_as(z)
    (found,) = torch.autograd.grad(z, x, weight)
    torch.testing.assert_close(found, 2 * weight, rtol=1e-4, atol=0)


def test_what_undoes_each_row_by_itself_refuses():
    class Mean(nn.Module):
        def forward(self, z, x):
            return torch.tanh(0.3 * z + 0.4 * z.mean(0, keepdim=True) + x)

    x = torch.randn(12, DIM, **DOUBLE)
    x[::2] *= 0.05
    layer = Equilibrium(Mean(), solver=Reversible(), gradient=ReversibleGradient(), compact=False, rtol=1e-3)
    with pytest.raises(RuntimeError, match=r"undoes each row by itself.*z0\[None\]"):
        layer(x.requires_grad_())


def ring(dtype=torch.float64):
    shift = torch.eye(ROWS, dtype=dtype).roll(1, 0)
    return 3 * torch.eye(ROWS, dtype=dtype) - shift - shift.T


@pytest.mark.parametrize("unit", [1.0, 1e-5, 1e5])
@pytest.mark.parametrize("gradient", [{}, {"rtol": 1e-12}, {"solver": Anderson()}, {"unconverged": Unconverged.RAISE}])
def test_a_loss_on_one_node_of_a_graph(gradient, unit):
    """The gradient that comes in is 0 in all other rows, whose tolerance must not be."""
    b = torch.linspace(1, 2, ROWS, **DOUBLE)[:, None].requires_grad_()
    start, policy = torch.zeros(ROWS, 1, **DOUBLE), ImplicitGradient(**gradient)
    with record() as log:
        z = root(lambda z, b: unit * (ring() @ z - b), start, (b,), gradient=policy, rtol=1e-10)
        (found,) = torch.autograd.grad(z[0].sum(), b)
    assert bool(log.backward[0].solution.converged.all())
    torch.testing.assert_close(found[:, 0], torch.linalg.inv(ring())[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_source_at_one_node_of_a_graph(dtype):
    """F is 0 at the start in all other rows."""
    source = torch.zeros(ROWS, 1, dtype=dtype)
    source[0] = 1
    solution = solvers.root(lambda z: ring(dtype) @ z - source, torch.zeros_like(source), atol=0.0)
    assert bool(solution.converged.all())
    assert float(solution.residual.max()) < 1e-6
    torch.testing.assert_close(solution.value, torch.linalg.solve(ring(dtype), source), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")
@pytest.mark.parametrize("coupled", [True, False])
def test_rows_that_all_fail_backwards_are_said_to_depend_on_each_other_if_they_do(coupled):
    torch.manual_seed(12)
    shared, own = 0.8 * torch.randn(30, 30) / 30**0.5, 1.1 * torch.linalg.qr(torch.randn(5, 5)).Q
    x = torch.randn(6, 5, requires_grad=True)

    def f(z, x):
        return ((shared @ z.flatten()).view_as(z) if coupled else z @ own) + x

    gradient = ImplicitGradient(Anderson(period=3) if coupled else Picard())
    with record() as log:
        fixed_point(f, torch.zeros(6, 5), (x,), gradient=gradient).square().sum().backward()
    solution = log.backward[0].solution
    assert not solution.converged.any()
    assert ("the rows depend on each other" in solution.summary()) == coupled
