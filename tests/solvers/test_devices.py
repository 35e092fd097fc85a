"""Stretches on devices without values: whatever looks at a number, or mixes devices, raises there."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from solvers import GMRES, Anderson, Broyden, Monotone, NewtonKrylov, Picard, Reversible, Settings, solve
from solvers.loops.eager import Hold, advance, begin
from solvers.problem import Problem
from solvers.state import Layout

SOLVERS = [
    Picard(),
    Picard(damping=0.5),
    Anderson(memory=3),
    Broyden(memory=3),
    GMRES(restart=3),
    Monotone(memory=3),
    Reversible(),
]
by_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)


def stretches(solver, f, z0, *args):
    """Stretches that fill the solver's memory and go round, with rows held, and with rows that forget."""
    problem = Problem(f, args, Layout(z0))
    assert solver.fixed_cost  # it evaluates f nowhere but in the loop
    flat, measure = problem.layout.flatten(z0), Settings().measure
    none = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    with torch.no_grad():
        stretch = begin(problem, solver, measure, flat, None, robust=True)
        for steps in (1, 2, 6):
            stretch = advance(problem, solver, measure, stretch, steps, Hold(None, flat, None), robust=True)
        stretch = advance(problem, solver, measure, stretch, 2, Hold(none, flat, none), robust=True)
    assert stretch.norms.shape == (4, len(flat))
    assert stretch.norms.device == stretch.points[-1].device == flat.device


def problem(device, dtype, batch):
    linear, x = nn.Linear(6, 6, device=device, dtype=dtype), torch.randn(batch, 6, device=device, dtype=dtype)
    return lambda z, x: torch.tanh(linear(z) + x), torch.zeros_like(x), x


@by_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 4])
def test_no_stretch_looks_at_a_number_or_leaves_its_device(solver, dtype, batch):
    stretches(solver, *problem("meta", dtype, batch))
    with FakeTensorMode():
        stretches(solver, *problem("cuda", dtype, batch))


@by_solver
@pytest.mark.parametrize("batch", [1, 4])
def test_nor_does_one_of_an_adjoint_solve(solver, batch):
    f, z0, x = problem("meta", torch.float32, batch)
    point = z0.requires_grad_()
    image = f(point, x)

    def adjoint(u, g):
        return torch.autograd.grad(image, point, u, retain_graph=True)[0] + g

    stretches(solver, adjoint, torch.randn_like(x), torch.randn_like(x))


@by_solver
def test_nor_does_one_of_a_state_in_parts(solver):
    def f(state):
        image, vector = state
        return torch.tanh(0.5 * image), 0.5 * vector + image.mean(dim=(1, 2))[:, None]

    stretches(solver, f, (torch.zeros(2, 3, 4, device="meta"), torch.zeros(2, 5, device="meta")))


def test_newton_krylov_alone_solves_within_its_steps():
    """Its inner solves look at residuals, as its docstring says."""
    assert not NewtonKrylov().fixed_cost


def test_a_solve_without_values_is_refused_in_words():
    f, z0, x = problem("meta", torch.float32, 4)
    with pytest.raises(RuntimeError, match="tensors on the meta device have no values"):
        solve(f, z0, (x,))
