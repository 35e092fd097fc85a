"""Untracked steps in stretches that a loop runs at once are those of the plain loop."""

import copy
import pickle
import warnings
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

from implicit import Looped, record
from solvers import Captured, Compiled, Eager
from solvers.loops.graphs import Called

from .cells import DIM, Cell, Residual, inputs, textbook


class Counted(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.calls = cell, []

    def forward(self, z, x):
        self.calls.append(1)
        return self.cell(z, x)


class Levels(nn.Module):
    """A state of two levels of unequal width."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(3, DIM).double(), nn.Linear(DIM, 3).double()

    def forward(self, z, x):
        return {"high": torch.tanh(self.up(z["low"]) + x - 0.1 * z["high"]), "low": self.down(z["high"]).sin()}


@pytest.mark.parametrize("every", [1, 3, 8, 40])
@pytest.mark.parametrize(("steps", "tracked"), [(1, 1), (12, 2), (12, 12), (30, 1), (31, 4)])
def test_value_and_gradient_are_those_of_the_loop(every, steps, tracked):
    cell, x, start = Residual(), inputs(), inputs()
    looped = Looped(cell, steps=steps, tracked=tracked, loop=Captured(every))
    targets = [x, *cell.parameters()]
    for _ in range(4):  # found out, recorded, replayed
        found, expected = looped(x, z0=start), textbook(cell, x, steps, tracked, start)
        assert torch.equal(found, expected)
        for grad, want in zip(*(torch.autograd.grad(z.sin().sum(), targets) for z in (found, expected)), strict=True):
            assert torch.equal(grad, want)
        with torch.no_grad():
            assert torch.equal(looped(x, z0=start), expected)
            cell.inner.weight.mul_(0.9)
        x = inputs().requires_grad_()
        targets[0] = x


def test_no_step_is_taken_in_vain_once_it_is_recorded():
    looped = Looped(Counted(Cell()), steps=30, tracked=4, loop=Captured(8))
    counts = []
    for _ in range(6):
        looped.cell.calls.clear()
        looped(inputs())
        counts.append(len(looped.cell.calls))
    assert counts[0] == counts[-1] == 30


def test_stretches_are_replayed(monkeypatch):
    replays, replay = [], Called.replay
    monkeypatch.setattr(Called, "replay", lambda self: replays.append(self) or replay(self))
    looped = Looped(Cell(), steps=26, tracked=1, loop=Captured(8))
    for _ in range(6):
        looped(inputs())
    assert len(replays) >= 6
    before = len(replays)
    looped.loop = Eager()
    looped(inputs())
    assert len(replays) == before


@pytest.mark.parametrize("parametrized", [False, True])
def test_weights_may_change_and_be_replaced(parametrized):
    cell = Cell()
    if parametrized:
        spectral_norm(next(module for module in cell.modules() if isinstance(module, nn.Linear)))
    cell.eval()
    looped, plain = (Looped(cell, steps=20, tracked=1, loop=loop) for loop in (Captured(4), Eager()))
    for turn in range(6):
        x = inputs()
        assert torch.equal(looped(x), plain(x))
        with torch.no_grad():
            for module in cell.modules():
                if isinstance(module, nn.Linear) and turn == 3 and not parametrized:
                    module.weight = nn.Parameter(0.5 * module.weight)
                elif isinstance(module, nn.Linear):
                    module.bias.add_(0.1)


def test_nested_states_keep_their_form():
    cell, start = Levels(), {name: torch.zeros(4, dim).double() for name, dim in (("high", DIM), ("low", 3))}
    x = torch.randn(4, DIM, dtype=torch.float64)
    plain, looped = (Looped(cell, steps=25, tracked=2, loop=loop) for loop in (Eager(), Captured(4)))
    for _ in range(4):
        found, expected = looped(x, z0=start), plain(x, z0=start)
        assert list(found) == ["high", "low"]
        assert all(torch.equal(found[name], expected[name]) for name in start)


def test_rows_that_are_not_finite_pass_through_as_in_the_loop():
    cell, x = Residual(), inputs().detach()
    x[1] = torch.nan
    looped, plain = (Looped(cell, steps=20, tracked=1, loop=loop) for loop in (Captured(4), Eager()))
    for _ in range(4):
        assert torch.equal(looped(x).nan_to_num(7.0), plain(x).nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_under_autocast_and_in_low_precision(dtype):
    cell, x = Cell().float(), inputs().float()
    looped, plain = (Looped(cell, steps=20, tracked=2, loop=loop) for loop in (Captured(4), Eager()))
    for _ in range(4):
        if dtype is None:
            cell.to(torch.bfloat16)
            found, expected = looped(x.bfloat16()), plain(x.bfloat16())
        else:
            with torch.autocast("cpu", dtype=dtype):
                found, expected = looped(x, z0=torch.zeros_like(x)), plain(x, z0=torch.zeros_like(x))
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_what_a_stretch_cannot_do_is_done_step_by_step():
    x, steps = inputs(), torch.tensor([3, 20, 7, 11, 30])
    cell = Cell()
    looped, plain = (Looped(cell, steps=30, tracked=2, loop=loop) for loop in (Captured(4), Eager()))
    for _ in range(3):
        assert torch.equal(looped(x, steps=steps[: len(x)]), plain(x, steps=steps[: len(x)]))
        with record() as log:
            looped(x)
        assert log.forward[-1].solution.steps.tolist() == [30] * len(x)
        tangents = torch.func.jvp(lambda x: looped(x), (x,), (torch.ones_like(x),))[1]
        assert torch.equal(tangents, torch.func.jvp(lambda x: plain(x), (x,), (torch.ones_like(x),))[1])


def test_batch_statistics_move_once_a_step():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm = nn.Linear(DIM, DIM).double(), nn.BatchNorm1d(DIM).double()

        def forward(self, z, x):
            return self.norm(torch.tanh(self.inner(z) + x))

    looped = Looped(Normalised(), steps=20, tracked=2, loop=Captured(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for turn in range(1, 4):
            looped(inputs())
            assert looped.cell.norm.num_batches_tracked == 20 * turn


def test_copies_and_pickles_hold_no_recordings():
    looped, x = Looped(Cell(), steps=20, tracked=1, loop=Captured(4)), inputs()
    for _ in range(3):
        looped(x)
    assert len(looped._captures)
    for other in (copy.deepcopy(looped), pickle.loads(pickle.dumps(looped))):
        assert not len(other._captures)
        assert torch.equal(other(x), looped(x))
    assert not [name for name in looped.state_dict() if "capture" in name]


def test_a_compiled_loop_finds_the_same():
    cell, x = Cell(), inputs()
    looped, plain = (Looped(cell, steps=20, tracked=2, loop=loop) for loop in (Compiled(4), Eager()))
    torch.testing.assert_close(looped(x), plain(x), rtol=1e-12, atol=1e-12)


def test_what_is_no_loop_is_refused_and_an_error_says_where_the_start_came_from():
    with pytest.raises(TypeError, match=r"Looped: loop=8 is not a loop: pass an object such as Eager\(\)"):
        Looped(Cell(), steps=3, loop=8)
    looped = Looped(nn.Bilinear(3, 4, 3), steps=30, tracked=1, loop=Captured(4))
    with pytest.raises(RuntimeError, match="z starts as zeros like the first input"):
        looped(torch.randn(2, 5))


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("loop", [Eager(8), Captured(8)], ids=repr)
def test_untracked_steps_compute_no_residuals(loop):
    looped, x = Looped(Cell(), steps=41, tracked=1, loop=loop), inputs()
    for _ in range(4):
        with Operations() as operations:
            looped(x)
    assert operations.names["aten.sub.Tensor"] + operations.names["aten.linalg_vector_norm.default"] <= 2
