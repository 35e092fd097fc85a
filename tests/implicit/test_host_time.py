"""When a solve is said to wait for the host: a decision on two times, which are measured on a GPU alone."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from implicit import Equilibrium
from implicit.diagnostics import diagnose, host_time
from implicit.diagnostics.host_time import StepTimes, waiting, waits_for_host
from solvers import Anderson, Captured, Compiled, Eager, NewtonKrylov, PeacemanRachford, Picard
from solvers.problem import prepare

NAME = "the solve waits for the host"


class Cell(nn.Module):
    def __init__(self, looks=False):
        super().__init__()
        self.inner, self.looks = nn.Linear(8, 8), looks
        with torch.no_grad():
            self.inner.weight *= 0.5 / torch.linalg.matrix_norm(self.inner.weight, 2)

    def forward(self, z, x):
        image = torch.tanh(self.inner(z) + x)
        return image * (2 if self.looks and image.sum().item() == 1e9 else 1)


@pytest.fixture
def clock(monkeypatch):
    """What is measured, instead of a clock; how often it was asked for."""
    asked = SimpleNamespace(count=0, times=StepTimes(1e-4, 1e-5))

    def step_times(look):
        asked.count += 1
        return asked.times

    monkeypatch.setattr(host_time, "step_times", step_times)
    return asked


def on_a_gpu(rows=4, solver=Anderson(), loop=Eager(), cell=None):
    """What `waiting` reads of a look, as if it were on a CUDA device."""
    z = torch.zeros(rows, 8)
    there = {"device": SimpleNamespace(type="cuda"), "__len__": lambda self: rows, "clone": lambda self: z.clone()}
    problem = prepare(cell or Cell(), z, (torch.randn(rows, 8),))
    return SimpleNamespace(
        layer=SimpleNamespace(solver=solver, loop=loop), value=type("", (), there)(), problem=problem
    )


@pytest.mark.parametrize(
    ("step", "cell", "loop", "found"),
    [
        (100e-6, 10e-6, Eager(), True),
        (100e-6, 49e-6, Eager(8), True),
        (100e-6, 49e-6, Compiled(12), True),
        (100e-6, 51e-6, Eager(), False),
        (100e-6, 99e-6, Eager(), False),
        (100e-6, 10e-6, Captured(), False),
        (0.0, 0.0, Eager(), False),
    ],
)
def test_the_decision(step, cell, loop, found):
    finding = waits_for_host(StepTimes(step, cell), loop)
    assert (finding is not None) == found
    if finding is not None:
        assert finding.name == NAME
        assert f"{1e6 * step:.3g} µs" in finding.evidence
        assert f"{1e6 * cell:.3g} µs" in finding.evidence
        for word in ("loop=Captured()", "fixed shapes", "compact=False", "captured"):
            assert word in finding.remedy


def test_it_is_measured_where_the_remedy_would_help(clock):
    assert waiting(on_a_gpu()).name == NAME
    assert clock.count == 1
    for look in (
        on_a_gpu(loop=Captured()),
        on_a_gpu(solver=NewtonKrylov()),
        on_a_gpu(solver=PeacemanRachford()),
        on_a_gpu(rows=0),
    ):
        assert waiting(look) is None
    assert clock.count == 1
    clock.times = None  # the cell cannot be captured
    assert waiting(on_a_gpu()) is None


def test_the_remedy_is_one_that_the_cell_allows(clock):
    class Listed(Cell):
        def __init__(self):
            super().__init__()
            self.blocks = [self.inner]
            self.outside = [nn.Linear(8, 8)]

        def forward(self, z, x):
            return super().forward(z, x) + self.outside[0](x)

    assert "fixed shapes" in waiting(on_a_gpu()).remedy
    remedy = waiting(on_a_gpu(cell=Listed())).remedy
    assert "cannot record this cell: it reads a tensor (8×8)" in remedy
    assert "nn.ModuleList" in remedy


def test_a_diagnosis_measures_on_a_gpu_alone(clock, device):
    names = [finding.name for finding in diagnose(Equilibrium(Cell()), torch.randn(4, 8))]
    assert (names, clock.count) == (([NAME], 1) if device == "cuda" else ([], 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures on a CUDA device")
@pytest.mark.parametrize(("looks", "names"), [(False, [NAME]), (True, [])])
def test_a_small_cell_waits_and_one_that_cannot_be_captured_is_left_alone(looks, names, device, monkeypatch):
    monkeypatch.undo()  # the clock is what is tested
    if device != "cuda":
        return
    layer, x = Equilibrium(Cell(looks), solver=Picard(), max_steps=60), torch.randn(4, 8)
    assert [finding.name for finding in diagnose(layer, x)] == names
    assert layer(x).isfinite().all()  # the device goes on
