"""The layer in real training code."""

import copy
import gc
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from implicit import ConvergenceWarning, Equilibrium, ImplicitGradient, PhantomGradient, fixed_point, record
from implicit.diagnostics import jacobian_penalty
from solvers import solve

from .cells import DIM, TIGHT, Cell, exact, inputs, tight_layer, unrolled


def agree(found, expected, rtol=1e-8, atol=1e-9):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def test_in_a_loop_with_and_without_truncation():
    cell, x = Cell(), inputs()
    layer = tight_layer(cell)

    def last(equilibrium, truncated):
        state = x
        for _ in range(3):
            state = equilibrium(state.detach() if truncated else state) + x
        return state.sin().sum()

    targets = [x, *cell.parameters()]
    for truncated in (False, True):
        found = torch.autograd.grad(last(layer, truncated), targets)
        agree(found, torch.autograd.grad(last(lambda s: unrolled(cell, s), truncated), targets))


def test_frozen_parameters_and_missing_gradients():
    cell, x = Cell(), inputs()
    cell.inner.bias.requires_grad_(False)
    z = tight_layer(cell)(x)
    z.sin().sum().backward()
    assert cell.inner.bias.grad is None
    agree([cell.inner.weight.grad], torch.autograd.grad(unrolled(cell, x).sin().sum(), [cell.inner.weight]))
    unused = fixed_point(
        lambda z, x: (z[0] / 2 + x, z[1] / 2), (torch.zeros_like(x), torch.zeros_like(x)), (x,), gradient=exact()
    )
    agree(torch.autograd.grad(unused[0].sum(), x), [torch.full_like(x, 2.0)], rtol=1e-6)


def test_a_pickled_and_an_averaged_layer():
    layer, x = tight_layer(), inputs()
    twin = pickle.loads(pickle.dumps(layer))
    assert torch.equal(twin(x), layer(x))
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x), layer(x))
    average = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(layer)
    with torch.no_grad():
        layer.cell.inner.bias.add_(1)
    before = copy.deepcopy(average.module.cell.inner.bias)
    average.update_parameters(layer)
    torch.testing.assert_close(average.module.cell.inner.bias, before + 0.1)
    assert average(x).requires_grad


@pytest.mark.parametrize("gradient", [ImplicitGradient(), ImplicitGradient(reuse=True), PhantomGradient(2)], ids=repr)
def test_hundreds_of_steps_leave_nothing_behind(gradient):
    layer, x = Equilibrium(Cell(), rtol=1e-4, gradient=gradient), inputs(2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4)

    def live_after(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        assert live_after(10) == live_after(290)
    finally:
        gc.enable()


def test_second_derivatives_leave_nothing_behind():
    layer, x = Equilibrium(Cell(), rtol=1e-4), inputs(2)

    def live_after(steps):
        for _ in range(steps):
            (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
            torch.autograd.grad(slope.square().sum(), [x, *layer.parameters()])
        del slope
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    assert live_after(3) == live_after(20)


def test_a_warm_start_saves_evaluations_on_a_slowly_changing_input():
    layer = Equilibrium(Cell(32), rtol=1e-6, atol=0.0)
    x, spent, z = torch.randn(4, 32, dtype=torch.float64), {"cold": 0, "warm": 0}, None
    for frame in range(20):
        now = x + 0.001 * frame * x.cos()
        spent["cold"] += int(layer.solve(now).check().evaluations.sum())
        warm = layer.solve(now, z0=z).check()
        spent["warm"] += int(warm.evaluations.sum())
        z = warm.value
        torch.testing.assert_close(z, unrolled(layer.cell, now), rtol=1e-5, atol=1e-5)
    assert spent["warm"] < 0.6 * spent["cold"]


class Scales(nn.Module):
    """Two resolutions that see each other."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = (spectral_norm(nn.Conv2d(width, width, 3, padding=1)) for width in (3, 5))
        self.down = spectral_norm(nn.Conv2d(3, 5, 2, stride=2))
        self.up = spectral_norm(nn.ConvTranspose2d(5, 3, 2, stride=2))

    def forward(self, z, x):
        fine, coarse = z
        return (
            torch.tanh(0.1 * self.fine(fine) + 0.4 * self.up(coarse) + x),
            torch.tanh(0.1 * self.coarse(coarse) + self.down(fine)),
        )


def test_a_cell_of_two_scales_trains():
    torch.manual_seed(0)
    layer = Equilibrium(Scales(), initial=lambda x: (torch.zeros_like(x), x.new_zeros(len(x), 5, 4, 4)))
    head = nn.Linear(5, 2)
    x = torch.randn(64, 3, 8, 8)
    labels = (x.mean((1, 2, 3)) > 0).long()
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=2e-2)
    with record() as log:
        for _ in range(80):
            optimizer.zero_grad()
            z = layer(x)
            loss = nn.functional.cross_entropy(head(z[1].mean((2, 3))), labels)
            (loss + 0.01 * jacobian_penalty(layer.cell, z, (x,))).backward()
            optimizer.step()
    assert loss < 0.3
    assert all(entry.solution.converged.all() for entry in (*log.forward, *log.backward))


# --- mixed precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_reaches_the_dtypes_floor_and_says_so(dtype):
    torch.manual_seed(0)
    cell = Cell(16).float()
    x = torch.randn(64, 16)
    with torch.no_grad():
        exactly = Equilibrium(cell, rtol=1e-6)(x)
    layer = Equilibrium(cell, rtol=4 * torch.finfo(dtype).eps, gradient=ImplicitGradient(rtol=1e-2))
    with torch.autocast(torch.get_default_device().type, dtype=dtype):
        z = layer(x)
    assert (z - exactly).norm() < 20 * torch.finfo(dtype).eps * exactly.norm()
    reference = torch.autograd.grad(unrolled(cell, x).square().sum(), list(cell.parameters()))
    found = torch.autograd.grad(z.square().sum(), list(cell.parameters()))
    for one, other in zip(found, reference, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()
    layer.rtol = 1e-7
    with (
        torch.autocast(torch.get_default_device().type, dtype=dtype),
        pytest.warns(ConvergenceWarning, match="as small as the dtype of f, or autocast, allows: set rtol to") as told,
    ):
        layer(x)
    (only,) = [str(warning.message) for warning in told if warning.category is ConvergenceWarning]
    assert "may suffice" not in only
    layer.rtol = float(re.search(r"set rtol to (\S+) or more", only)[1])
    with torch.autocast(torch.get_default_device().type, dtype=dtype):
        assert layer.solve(x).converged.all()


def test_the_gradient_scaler_changes_nothing():
    cell, x = Cell().float(), inputs().detach().float()
    layer = Equilibrium(cell, rtol=1e-6, gradient=ImplicitGradient(rtol=1e-6))
    (expected,) = torch.autograd.grad(layer(x).square().mean(), cell.inner.weight)
    scaler = torch.amp.GradScaler(torch.get_default_device().type, init_scale=2.0**16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = cell.inner.weight.detach().clone()
    scaler.scale(layer(x).square().mean()).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(cell.inner.weight.grad, expected, rtol=1e-4, atol=1e-8)
    scaler.step(optimizer)
    torch.testing.assert_close(before - cell.inner.weight, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")
def test_the_gradient_scaler_sees_an_overflow():
    layer, x = Equilibrium(Cell().float()), inputs().detach().float()
    scaler = torch.amp.GradScaler(torch.get_default_device().type, init_scale=2.0**10)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = [p.detach().clone() for p in layer.parameters()]
    (scaler.scale(layer(x).square().mean()) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(one, other) for one, other in zip(layer.parameters(), before, strict=True))
    assert scaler.get_scale() < 2.0**10


def test_a_zero_solution_of_an_equation_that_is_not_zero_never_counts():
    # u = Jᵀu + g has no solution near 0 for a tiny g, whatever its scale
    for scale in (1e-30, 1e-9, 1e6, 1e30):
        x = inputs().detach().float().requires_grad_()
        with record(values=True) as log:
            z = Equilibrium(Cell().float(), rtol=1e-6)(x)
            z.backward(torch.full_like(z, scale))
        assert log.backward[0].solution.value.norm(dim=1).min() > 0.1
        assert (x.grad / scale).abs().max() > 0.1


def test_the_value_is_that_of_the_solution_under_every_setting():
    cell, x = Cell(), inputs()
    value = solve(cell, torch.zeros_like(x), (x,), compact=True, **TIGHT).value
    assert torch.equal(tight_layer(cell)(x), value)
    assert torch.equal(tight_layer(cell).eval()(x), value)
    with torch.no_grad():
        assert torch.equal(tight_layer(cell)(x), value)
    assert torch.equal(tight_layer(cell, PhantomGradient())(x), value)
    assert x.shape[1] == DIM
