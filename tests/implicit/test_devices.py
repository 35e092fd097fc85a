"""Gradients on the meta device: no policy's backward pass mixes devices or waits for a number to be read."""

from functools import partial

import pytest
import torch
from torch import nn

from implicit import NeumannGradient, PhantomGradient, ShineGradient, UnrolledGradient
from implicit.gradients.base import Evaluation
from implicit.pure_problem import PureProblem
from solvers import Anderson, Settings
from solvers.loops.eager import Hold, advance, begin
from solvers.problem import Problem
from solvers.solution import History, Outcome
from solvers.state import Layout

POLICIES = [
    PhantomGradient(steps=3, damping=0.5),
    UnrolledGradient(steps=4),
    UnrolledGradient(steps=4, checkpoint=True),
    NeumannGradient(steps=3),
    ShineGradient(),
]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("batch", [1, 4])
def test_backward_passes_stay_on_their_device_and_read_nothing(policy, batch):
    cell = nn.Linear(6, 6, device="meta")
    x = torch.randn(batch, 6, device="meta", requires_grad=True)
    solver = Anderson(memory=3)

    def f(z, x):
        return torch.tanh(cell(z) + x)

    problem = Problem(f, (x,), Layout(x.detach()))
    with torch.no_grad():
        stretch = begin(problem, solver, Settings().measure, torch.zeros_like(x), None, robust=True)
        stretch = advance(problem, solver, Settings().measure, stretch, 5, Hold(None, x, None), robust=True)
    value = stretch.points[-1]
    history = History(torch.arange(batch, device="meta"), 6, value, stretch.memory)
    outcome = Outcome(value, None, None, None, False, [history] if policy.remembers else [], [])
    point = policy.point(value, ())
    evaluation = Evaluation(
        problem, torch.zeros_like(x), point, problem(point), partial(PureProblem.of, problem), None, solver, outcome
    )
    z = policy.attach(evaluation)
    z.square().sum().backward()
    assert z.device.type == x.grad.device.type == cell.weight.grad.device.type == "meta"
