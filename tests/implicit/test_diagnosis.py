"""A planted fault for each finding; a healthy layer has none."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as normalised

from implicit import Equilibrium, ImplicitGradient, Unconverged
from implicit.diagnostics import diagnose
from solvers import Anderson, Picard


class Cell(nn.Module):
    def __init__(self, scale=0.5, extra=None, width=8):
        super().__init__()
        self.inner, self.inject, self.extra = nn.Linear(width, width), nn.Linear(width, width), extra
        with torch.no_grad():
            self.inner.weight *= scale / torch.linalg.matrix_norm(self.inner.weight, 2)

    def forward(self, z, x):
        out = self.inner(z) + self.inject(x)
        return torch.tanh(out if self.extra is None else self.extra(out))


class Affine(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, z, x):
        return z @ self.matrix.T + x


def names(layer, *inputs):
    findings = diagnose(layer, *inputs)
    for finding in findings:
        assert str(finding).startswith(finding.name)
        assert set(finding.to_dict()) == {"name", "evidence", "remedy"}
    return [finding.name for finding in findings]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", [True, False])
def test_a_healthy_layer_has_none(dtype, mode):
    layer = Equilibrium(Cell(0.9)).to(dtype).train(mode)
    settings = layer.gradient, layer.rtol, layer.training
    assert names(layer, torch.randn(12, 8, dtype=dtype)) == []
    assert (layer.gradient, layer.rtol, layer.training) == settings
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_a_stochastic_cell_is_found_alone():
    layer = Equilibrium(Cell(extra=nn.Dropout(0.2)))
    assert names(layer, torch.randn(4, 8)) == ["stochastic cell"]
    assert names(layer.eval(), torch.randn(4, 8)) == []


def test_spectral_normalisation_in_training_is_not_stochastic():
    cell = Cell(0.5, extra=normalised(nn.Linear(8, 8)))
    assert names(Equilibrium(cell).train(), torch.randn(4, 8)) == []


def test_rows_that_see_each_other():
    layer = Equilibrium(Cell(extra=nn.BatchNorm1d(8, track_running_stats=False)), compact=False)
    assert "rows coupled through the batch" in names(layer, torch.randn(6, 8))


def test_rows_that_are_not_finite_are_named():
    x = torch.randn(5, 8)
    x[3] = float("nan")
    (finding,) = diagnose(Equilibrium(Cell()), x)
    assert finding.name == "rows that are not finite"
    assert "row 3" in finding.evidence


def test_a_tolerance_below_what_the_dtype_resolves():
    assert "the dtype's floor" in names(Equilibrium(Cell(), rtol=1e-10, atol=0.0), torch.randn(5, 8))


def test_rows_that_have_no_fixed_point():
    assert "stalled or cycling rows" in names(Equilibrium(Affine(torch.eye(3))), torch.ones(2, 3))


def test_a_spectral_radius_above_one():
    matrix = torch.tensor([[0.0, -1.3], [1.3, 0.0]])
    assert names(Equilibrium(Affine(matrix)), torch.randn(4, 2)) == ["spectral radius above 1"]


@pytest.mark.parametrize("unconverged", list(Unconverged))
def test_a_backward_solve_without_enough_steps(unconverged):
    gradient = ImplicitGradient(solver=Picard(), rtol=1e-6, max_steps=2, unconverged=unconverged)
    assert names(Equilibrium(Cell(0.9), gradient=gradient), torch.randn(4, 8)) == ["backward solve not converged"]


def test_a_tolerance_that_spoils_the_gradient():
    found = names(Equilibrium(Cell(0.95), rtol=0.3), torch.randn(4, 8))
    assert found == ["tolerance too loose for the gradient"]


def test_a_history_that_is_too_short():
    matrix = torch.diag(torch.linspace(-0.97, 0.97, 8))
    found = names(Equilibrium(Affine(matrix), solver=Anderson(memory=2), rtol=1e-5), torch.randn(4, 8))
    assert found == ["history too short"]


def test_an_empty_batch_has_nothing_to_find():
    assert names(Equilibrium(Cell()), torch.randn(0, 8)) == []


class Pair(nn.Module):
    """A state of two tensors, of different shapes."""

    def forward(self, z, x):
        return 0.5 * torch.cos(z[0]) + x, 0.3 * torch.sin(z[1])


def test_half_precision_and_states_of_several_tensors_are_looked_at_too():
    assert names(Equilibrium(Cell(0.5), rtol=1e-2).half(), torch.randn(4, 8).half()) == []
    layer = Equilibrium(Pair(), initial=lambda x: (torch.zeros_like(x), x.new_zeros(len(x), 2, 3)))
    assert names(layer, torch.randn(4, 8)) == []


def test_a_layer_that_wants_no_gradient_has_none_to_find_fault_with():
    class Halves(nn.Module):
        def forward(self, z, index):
            return 0.5 * z + 1.0

    layer = Equilibrium(Halves(), initial=lambda index: torch.zeros(len(index), 2))
    assert names(layer, torch.arange(3)) == []
