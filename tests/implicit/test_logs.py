"""What `record` and the warnings tell."""

import threading
import warnings

import pytest
import torch
from torch import nn

import implicit
from implicit import ConvergenceWarning, Equilibrium, ImplicitGradient, fixed_point, record
from solvers import Picard


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(1))

    def forward(self, z, x):
        return z / 2 + x + self.shift


def test_forward_and_backward_solves_are_recorded_in_order_and_by_name():
    model = nn.Sequential(Equilibrium(Half()), nn.Sequential(Equilibrium(Half(), max_steps=60)))
    with record(model) as log:
        model(torch.ones(3, 2)).sum().backward()
    assert [entry.name for entry in log.forward] == ["0", "1.0"]
    assert [entry.name for entry in log.backward] == ["1.0", "0"]
    for entry in (*log.forward, *log.backward):
        assert entry.solution.converged.all()
        assert entry.solution.trace.shape == (entry.solution.steps.max(), 3)
        assert entry.solution.value == ()


def test_values_are_kept_when_asked_for():
    layer, x = Equilibrium(Half()), torch.ones(3, 2)
    with record(values=True) as log:
        value = layer(x)
    assert log.forward[0].name == "Equilibrium(Half)"
    assert torch.equal(log.forward[0].solution.value, value)


def test_a_backward_pass_lands_in_the_log_of_its_forward():
    layer = Equilibrium(Half())
    with record() as first:
        loss = layer(torch.ones(1, 1)).sum()
    with record() as second:
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert len(first.backward) == 1
    assert not second.backward


def test_nested_blocks_each_get_what_happens_within_them():
    layer, x = Equilibrium(Half()), torch.ones(1, 1)
    with record() as outer:
        layer(x)
        with record() as inner:
            layer(x)
    layer(x)
    assert (len(outer.forward), len(inner.forward)) == (2, 1)


def test_each_log_names_a_layer_by_itself_whoever_else_listens():
    model, x = nn.Sequential(Equilibrium(Half())), torch.ones(1, 1)
    with record() as without, record(model) as named, record(nn.ModuleList([model])) as deeper, record() as inner:
        model(x).sum().backward()
    for log, name in ((without, "Equilibrium(Half)"), (named, "0"), (deeper, "0.0"), (inner, "Equilibrium(Half)")):
        assert [entry.name for entry in (*log.forward, *log.backward)] == [name, name]


def test_a_failed_solve_warns_at_the_callers_line():
    layer = Equilibrium(Half(), solver=Picard(), max_steps=3)
    with pytest.warns(
        ConvergenceWarning, match=r"(?s)forward solve: 0 of 2 rows.*MAX_STEPS.*raise max_steps"
    ) as caught:
        layer(torch.ones(2, 1))
    assert caught[0].filename == __file__


def test_a_failed_backward_solve_warns():
    layer = Equilibrium(Half(), gradient=ImplicitGradient(solver=Picard(), max_steps=2, rtol=1e-6))
    with pytest.warns(ConvergenceWarning, match="backward solve: 0 of 2 rows"):
        layer(torch.ones(2, 1)).sum().backward()


def test_a_healthy_solve_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed_point(lambda z: z / 2 + 1, torch.zeros(2, 1))


def test_a_cell_that_couples_rows_is_caught_and_solved():
    class Coupled(nn.Module):
        def forward(self, z, x):
            return torch.linspace(0.1, 0.9, 16)[: len(z), None] * z + x + 0.1 * z.mean(0)

    layer = Equilibrium(Coupled(), solver=Picard(), rtol=1e-5, max_steps=2000)
    x = torch.ones(16, 1, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="couples the rows"):
        value = layer(x)
    assert value.requires_grad
    matrix = torch.diag(torch.linspace(0.1, 0.9, 16)) + 0.1 / 16
    exact = torch.linalg.solve(torch.eye(16) - matrix, torch.ones(16, 1))
    torch.testing.assert_close(value.detach(), exact, rtol=1e-2, atol=0)


def test_public_names_resolve():
    assert all(hasattr(implicit, name) for name in implicit.__all__)
