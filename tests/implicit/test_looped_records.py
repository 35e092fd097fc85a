"""A fixed number of steps, watched: records, diagnostics, plots."""

import math
import warnings

import matplotlib
import pytest
import torch
from torch import nn

from implicit import Looped, record
from implicit.diagnostics import (
    compare_gradients,
    convergence_rate,
    diagnose,
    gradient_audit,
    jacobian_penalty,
    path_independence,
    spectral_radius,
)
from implicit.monitoring import Monitor
from implicit.plots import plot_convergence, plot_monitor, plot_steps
from solvers import ConvergenceError, Status

from .cells import DIM, Cell, Residual, agree, inputs

matplotlib.use("Agg")


@pytest.mark.parametrize("steps", [6, [1, 6, 4]])
def test_a_record_has_the_residuals_of_every_iterate(steps):
    cell, x = Residual(), inputs()
    looped, depths = Looped(cell, steps=3, tracked=2), [steps] * 3 if isinstance(steps, int) else steps
    model = nn.Sequential(looped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no tolerance, no warning
        with record(values=True) as log:
            z = looped(x, steps=torch.tensor(depths))
        looped.steps = 6
        with record(model) as named:
            model(x)
    (entry,) = log.forward
    assert (entry.name, named.forward[0].name) == ("Looped(Residual)", "0")
    for solution in (entry.solution, looped.solve(x, steps=torch.tensor(depths))):
        assert torch.equal(solution.value, z)
        assert not solution.value.requires_grad
        assert solution.steps.tolist() == solution.evaluations.tolist() == depths
        assert solution.fixed
        assert (solution.status == Status.MAX_STEPS).all()
        assert solution.trace.shape == solution.absolute.shape == (6, 3)
        for row, depth in enumerate(depths):
            point = torch.zeros_like(x[row : row + 1])
            for step in range(depth + 1):
                image = cell(point, x[row : row + 1])
                absolute = (image - point).norm()
                relative = absolute / image.norm()
                if step < depth:
                    agree([solution.absolute[step, row], solution.trace[step, row]], [absolute, relative])
                else:
                    agree([solution.residual[row]], [relative])
                    assert solution.trace[step:, row].isnan().all()
                point = image
    with pytest.raises(ConvergenceError, match="the number of steps was fixed, without a tolerance"):
        solution.check()
    assert "max_steps" not in solution.summary()
    assert log.to_dict()["evaluations"] == [sum(depths)]


def test_what_grows_out_of_bounds_has_diverged():
    class Growing(nn.Module):
        def forward(self, z, x):
            return z.square() + x

    solution = Looped(Growing(), steps=30).solve(torch.tensor([[3.0], [0.1]]))
    assert solution.status.tolist() == [Status.DIVERGED, Status.MAX_STEPS]
    assert solution.steps.tolist() == [30, 30]


def test_unrecorded_nothing_is_measured(monkeypatch):
    def measured(*_, **__):
        raise AssertionError

    monkeypatch.setattr("implicit.loop_trace.LoopTrace.see", measured)
    Looped(Cell(), steps=3)(inputs())
    meta = Looped(nn.Bilinear(3, 3, 3, device="meta"), steps=4, tracked=2)
    meta(torch.zeros(2, 3, device="meta")).sum().backward()  # nothing is read
    assert meta.cell.weight.grad.device.type == "meta"


def test_diagnostics_take_it():
    cell, x = Cell(), inputs(4).detach()
    looped = Looped(cell, steps=60)
    assert diagnose(looped, x) == []
    assert diagnose(nn.Sequential(looped), x) == []
    found = path_independence(looped, x)
    assert found.spread.max() < 1e-9
    assert not found.converged.any()
    solution = looped.solve(x)
    radius = spectral_radius(cell, solution.value, (x,))
    torch.testing.assert_close(convergence_rate(Looped(cell, steps=30).solve(x)), radius.cpu(), rtol=0.1, atol=0)
    assert jacobian_penalty(cell, looped(x), (x,)).requires_grad
    with torch.no_grad():
        cell.inner.weight.mul_(5)
    bad = x.clone()
    bad[0] = torch.nan
    names = [finding.name for finding in diagnose(nn.Sequential(Looped(cell, steps=2)), bad)]
    assert names == ["rows that are not finite", "spectral radius above 1"]
    for look in (gradient_audit, compare_gradients):
        options = {} if look is gradient_audit else {"gradients": {}, "rtols": []}
        with pytest.raises(TypeError, match="a Looped has no exact gradient"):
            look(looped, x, **options)


def test_a_monitor_watches_it():
    looped, x = Looped(Residual().float(), steps=6, tracked=2), torch.randn(12, DIM)
    model = nn.Sequential(nn.Linear(DIM, DIM), looped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Monitor(model, rows=2) as monitor:
            looped(model(x), steps=torch.arange(1, 13)).sum().backward()
    (sample,) = monitor.samples
    assert sample.layer == "1"
    assert sample.evaluations == pytest.approx(6 + 6.5)
    assert min(sample.spectral_radius, sample.residual) > 0
    assert math.isnan(sample.converged)
    assert math.isnan(sample.gradient_cosine)
    plot_monitor(monitor.samples)
    solution = looped.solve(x, steps=torch.arange(1, 13))
    plot_convergence(solution)
    plot_steps(solution)


def test_a_call_with_depths_of_its_own_is_seen_as_it_ran():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Looped(Residual().float(), steps=2)

        def forward(self, x):
            return self.layer(x, steps=torch.arange(1, len(x) + 1))

    x, model = torch.randn(20, DIM), Deep()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Monitor(model, rows=3) as monitor:
            model(x).sum().backward()
    assert monitor.samples[0].spectral_radius > 0
    assert {finding.name for finding in diagnose(model, x)} <= {"spectral radius above 1"}
