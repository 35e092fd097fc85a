"""Cells that multiply in TensorFloat-32, as convolutions on a GPU do by default; here factors are rounded by hand."""

import warnings

import pytest
import torch
from torch import nn

from implicit import Equilibrium
from implicit.diagnostics import diagnose
from solvers import Anderson, NewtonKrylov, Picard, precision, solve
from solvers.precision import TF32

WIDTH, ROWS = 128, 16


class _Rounded(torch.autograd.Function):
    """Without a second derivative, as of a cell of one's own: Newton takes finite differences."""

    @staticmethod
    def forward(ctx, x):
        return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad


class Convolved(nn.Conv1d):
    """A convolution of width 1 with factors of 10 bits."""

    def __init__(self, dtype=torch.float32):
        super().__init__(WIDTH, WIDTH, 1, dtype=dtype)
        nn.init.normal_(self.weight, std=WIDTH**-0.5)

    def forward(self, z, x):
        weight = self.weight[:, :, 0]
        if z.dtype == torch.float32:
            z, weight = _Rounded.apply(z), _Rounded.apply(weight)
        return torch.tanh(0.9 * z @ weight.mT + self.bias + x)


@pytest.fixture
def tf32(monkeypatch):
    monkeypatch.setattr(precision, "has_tf32", lambda device: True)


def test_finite_differences_step_far_enough(monkeypatch):
    f, x = Convolved(), torch.randn(ROWS, WIDTH) * torch.logspace(-2, 1, ROWS)[:, None]
    spent = []
    for known in (True, False):
        monkeypatch.setattr(precision, "has_tf32", lambda device, known=known: known)
        solution = solve(f, torch.zeros_like(x), (x,), solver=NewtonKrylov(), rtol=1e-3).check()
        spent.append(solution.evaluations.sum())
    assert 3 * spent[0] < spent[1]


def test_the_floor_is_named(tf32):
    layer, x = Equilibrium(Convolved(), solver=Anderson(), rtol=1e-6, max_steps=400), torch.randn(ROWS, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution = layer.solve(x)
        finding = next(each for each in diagnose(layer, x) if each.name == "the dtype's floor")
    assert solution.floored.any()
    for text in (solution.summary(), str(finding)):
        assert "TensorFloat-32" in text
        assert "torch.backends.cudnn.allow_tf32 = False" in text


@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=str)
def test_the_setting_counts_where_products_are_in_single_precision(solver, tf32):
    def unit(f, x):
        return solve(f, torch.zeros_like(x), (x,), solver=solver, rtol=1e-1).rounding

    single, double = torch.randn(2, WIDTH, dtype=torch.float32), torch.randn(2, WIDTH, dtype=torch.float64)

    def dense(z, x):
        return 0.1 * z + x

    assert unit(Convolved(), single) == unit(nn.ModuleList([Convolved()])[0], single) == TF32
    assert unit(Convolved(torch.float64), double) == torch.finfo(torch.float64).eps
    assert unit(dense, single) == torch.finfo(torch.float32).eps
    before = torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32, was = False, torch.backends.cudnn.allow_tf32
    try:
        assert unit(Convolved(), single) == torch.finfo(torch.float32).eps
        torch.set_float32_matmul_precision("high")
        assert unit(dense, single) == TF32
    finally:
        torch.backends.cudnn.allow_tf32 = was
        torch.set_float32_matmul_precision(before)


class Injected(nn.Module):
    """Convolves its input alone: what it does to z is dense."""

    def __init__(self):
        super().__init__()
        self.inject, self.inner = nn.Conv1d(8, 8, 1), nn.Linear(64, 64)
        nn.init.orthogonal_(self.inner.weight, 0.9)

    def forward(self, z, x):
        return torch.tanh(self.inner(z.flatten(1)).view_as(z) + self.inject(x))


def test_it_is_not_blamed_for_less_than_it_costs(tf32):
    layer, x = Equilibrium(Injected(), rtol=1e-8, max_steps=300), torch.randn(16, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution = layer.solve(x)
        finding = next(each for each in diagnose(layer, x) if each.name == "the dtype's floor")
    assert solution.rounding == TF32
    assert solution.floored.any()
    for text in (solution.summary(), str(finding)):
        assert "TensorFloat-32" not in text
        assert "et rtol to 1e-07 or more" in text


def test_convolutions_are_seen_whenever_they_are_made(tf32, monkeypatch):
    class Late(nn.Module):
        body = None

        def forward(self, z, x):
            return 0.1 * z + x

    cell, x = Late(), torch.randn(2, WIDTH, dtype=torch.float32)

    def unit():
        return solve(cell, torch.zeros_like(x), (x,), rtol=1e-1).rounding

    assert unit() == torch.finfo(torch.float32).eps
    cell.body = nn.Conv1d(1, 1, 1)
    assert unit() == TF32
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    assert unit() == torch.finfo(torch.float32).eps


def test_modules_are_looked_at_once(tf32):
    """Those that many share, and those that reach themselves."""

    class Both(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.one = self.other = nn.ModuleList([part])

        def forward(self, z, x):
            return 0.1 * z + x

    cell = nn.Identity()
    for _ in range(60):
        cell = Both(cell)
    cell.one.append(cell)
    x = torch.randn(2, WIDTH, dtype=torch.float32)
    assert solve(cell, torch.zeros_like(x), (x,), rtol=1e-1).rounding == torch.finfo(torch.float32).eps
