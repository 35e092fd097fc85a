"""Gradients beside the exact one, where that is known from dense linear algebra."""

import math
import time
import warnings

import pytest
import torch
from torch import nn

from implicit import Equilibrium, ImplicitGradient, NeumannGradient, PhantomGradient
from implicit.diagnostics import compare_gradients, gradient_audit
from solvers import ConvergenceError, Picard


class Affine(nn.Module):
    """z ↦ A z + x, with the gradient (I − Aᵀ)⁻¹ v with respect to x."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, z, x):
        return z @ self.matrix.T + x


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.inject = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.inject(x))


def affine(gradient, scale=0.6, **options):
    torch.manual_seed(0)
    matrix = torch.randn(4, 4)
    return Equilibrium(Affine(scale * matrix / torch.linalg.matrix_norm(matrix, 2)), gradient=gradient, **options)


def test_the_error_of_a_neumann_series_is_that_of_its_textbook_remainder():
    layer, x = affine(NeumannGradient(steps=3)), torch.randn(5, 4)
    v = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = layer.cell.matrix.double()
    exact = v @ torch.linalg.inv(torch.eye(4) - matrix)
    series = sum(v @ torch.linalg.matrix_power(matrix, power) for power in range(4))
    audit = gradient_audit(layer, x)
    assert audit.relative_error == pytest.approx(((series - exact).norm() / exact.norm()).item(), rel=1e-4)
    cosine = (series * exact).sum() / series.norm() / exact.norm()
    assert audit.cosine == pytest.approx(cosine.item(), rel=1e-6)
    assert audit.name == "NeumannGradient"
    assert audit.to_dict()["rtol"] == layer.rtol


def test_the_errors_fall_with_backward_steps_and_with_the_forward_tolerance_and_the_layer_is_left_as_it_was():
    torch.manual_seed(2)
    layer, x = Equilibrium(Cell().double()), torch.randn(7, 6).double()
    before = layer.gradient, layer.rtol
    gradients = {f"phantom {steps}": PhantomGradient(steps=steps) for steps in (1, 4, 16)}
    errors = [row.relative_error for row in compare_gradients(layer, x, gradients=gradients, rtols=[1e-8])]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    exact = {"implicit": ImplicitGradient(rtol=1e-10)}
    rows = compare_gradients(layer, x, gradients=exact, rtols=[1e-2, 1e-5, 1e-8])
    assert [row.rtol for row in rows] == [1e-2, 1e-5, 1e-8]
    assert rows[0].relative_error > 10 * rows[1].relative_error > 100 * rows[2].relative_error
    assert rows[0].evaluations < rows[2].evaluations
    assert (layer.gradient, layer.rtol) == before
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert x.grad is None and not x.requires_grad  # noqa: PT018


def test_the_default_gradient_is_as_good_as_its_tolerance():
    torch.manual_seed(0)
    audit = gradient_audit(Equilibrium(Cell()), torch.randn(9, 6))
    assert audit.relative_error < 1e-3
    assert audit.cosine > 0.999999


def test_what_has_no_reference_is_refused_in_words():
    layer, x = affine(ImplicitGradient(), scale=0.6), torch.randn(3, 4)
    with pytest.raises(ValueError, match="at least one policy"):
        compare_gradients(layer, x, gradients={}, rtols=[1e-3])
    nowhere = Equilibrium(Affine(torch.eye(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConvergenceError, match="exact gradient cannot be computed"):
            gradient_audit(nowhere, x)


def test_a_cell_that_hides_its_derivative_has_no_gradient_to_audit():
    class Hidden(Cell):
        @torch.no_grad()
        def forward(self, z, x):
            return super().forward(z, x)

    with pytest.raises(ValueError, match="the gradient: f depends on z, but its image has no graph"):
        gradient_audit(Equilibrium(Hidden()), torch.randn(3, 6))


def test_the_reference_is_found_where_the_layers_own_solver_could_not():
    layer = Equilibrium(Affine(torch.diag(torch.tensor([0.999, 0.5]))), solver=Picard(), rtol=1e-2, max_steps=1000)
    x = torch.ones(2, 2)
    audit = gradient_audit(layer, x)  # with respect to x it is exact wherever the solve stops
    assert audit.relative_error < 1e-2
    with torch.inference_mode():
        again = gradient_audit(layer, torch.ones(2, 2))
    assert again.cosine == pytest.approx(audit.cosine)


def test_seconds_are_the_median_of_passes_after_a_first_one(monkeypatch):
    layer, x = affine(NeumannGradient(steps=3)), torch.randn(5, 4)
    durations = iter([9.0, 1.0, 5.0, 2.0, 3.0])  # the longest is outlasted by the median
    now = [0.0]

    class Clock:
        @staticmethod
        def perf_counter():
            Clock.calls += 1
            now[0] += next(durations) if Clock.calls % 2 == 0 else 0.0
            return now[0]

        calls = 0

    monkeypatch.setattr("implicit.diagnostics.audit.time", Clock)
    (row,) = compare_gradients(layer, x, gradients={"one": layer.gradient}, rtols=[1e-3], repeats=5)
    assert row.seconds == 3.0
    assert Clock.calls == 10
    assert math.isnan(gradient_audit(layer, x, repeats=0).seconds)
    with pytest.raises(ValueError, match="repeats=-1 must be an integer of at least 0"):
        gradient_audit(layer, x, repeats=-1)


def test_the_first_pass_is_not_timed():
    class Slow(Affine):
        passes = 0

        def forward(self, z, x):
            if self.matrix.dtype == torch.float32 and not Slow.passes:  # not the reference, in float64
                time.sleep(0.3)
                Slow.passes = 1
            return super().forward(z, x)

    layer = Equilibrium(Slow(0.5 * torch.eye(4)))
    assert gradient_audit(layer, torch.randn(5, 4)).seconds < 0.3


def test_a_model_around_the_layer_and_a_class_of_gradients_are_named():
    layer, x = Equilibrium(Cell()), torch.randn(3, 6)
    with pytest.raises(
        TypeError, match=r"a Sequential has no exact gradient .* pass its layer 0 and that layer's inputs"
    ):
        gradient_audit(nn.Sequential(layer), x)
    with pytest.raises(TypeError, match="is not a Gradient: pass an object"):
        compare_gradients(layer, x, gradients={"phantom": PhantomGradient}, rtols=[1e-3])
    with pytest.raises(TypeError, match=r"initial is a tuple: pass a function of the inputs .* z0="):
        Equilibrium(Cell(), initial=(x, x))
