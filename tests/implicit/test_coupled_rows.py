"""Rows that depend on each other: found whatever couples them, and refused where each row is asked for a figure."""

import re
import warnings

import pytest
import torch
from torch import nn

from implicit import Equilibrium, PhantomGradient
from implicit.coupling import as_one_row, coupling
from implicit.diagnostics import diagnose, gradient_audit, jacobian_penalty, lyapunov_exponents, spectral_radius
from implicit.draws import normal
from implicit.monitoring import Monitor, MonitorWarning
from solvers import Eager, NewtonKrylov, Picard, solve
from solvers.problem import prepare

ROWS, WIDTH = 6, 4


class Graph(nn.Module):
    """Nodes as rows, `z ↦ A z W + x`."""

    def __init__(self, gain=0.5):
        super().__init__()
        adjacency = torch.rand(ROWS, ROWS)
        self.register_buffer("adjacency", adjacency / adjacency.sum(1, keepdim=True))
        self.weight = nn.Parameter(gain * torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q)

    def forward(self, z, x):
        return self.adjacency @ z @ self.weight + x


class Around(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, z, x):
        return torch.tanh(0.5 * self.part(z) + x)


class Attention(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.heads = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)

    def forward(self, z):
        return self.heads(z, z, z, need_weights=False)[0]


class Edges(nn.Module):
    """Messages along two edges: most nodes get none."""

    def forward(self, z, x, edges):
        return torch.zeros_like(z).index_add(0, edges[1], 0.4 * z[edges[0]]) + x


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def told(layer, *inputs):
    return next(f for f in diagnose(layer, *inputs) if f.name == "rows coupled through the batch")


@pytest.mark.parametrize("compact", [False, None, True])
@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (Graph, r"adjacency is \(6, 6\)"),
        (lambda: Around(nn.BatchNorm1d(WIDTH)), r"part \(BatchNorm1d\) uses batch statistics"),
        (lambda: Around(nn.Softmax(dim=0)), "rows 0, 1, 2, 3, 4, 5"),
    ],
)
def test_what_couples_rows_is_named_with_its_cure(make, cause, compact):
    finding = told(Equilibrium(make(), compact=compact), torch.randn(ROWS, WIDTH))
    assert "x[None]" in finding.remedy
    assert "LayerNorm" in finding.remedy
    assert "dropout" not in str(finding)
    assert re.search(cause, finding.evidence)


def test_attention_along_the_batch_is_told_from_attention_within_rows():
    x = torch.randn(ROWS, 3, WIDTH)
    assert "batch_first=True" in told(Equilibrium(Around(Attention(False)), compact=False), x).evidence
    assert diagnose(Equilibrium(Around(Attention(True)), compact=False), x) == []


def test_any_two_rows_are_told_apart():
    edges = torch.tensor([[3, 4], [2, 5]])
    x = torch.randn(ROWS, WIDTH)
    problem = prepare(Edges(), x, (x, edges))
    assert torch.nonzero(coupling(problem, x))[:, 0].tolist() == [2, 5]
    for source in range(ROWS):
        for target in range(ROWS):
            problem.args = x, torch.tensor([[source], [target]])
            assert torch.nonzero(coupling(problem, x))[:, 0].tolist() == [target] * (source != target)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_independent_rows_are_none_whatever_their_scale_and_dtype(dtype):
    scales = torch.logspace(-6, 6, ROWS)[:, None]
    x = (scales * torch.randn(ROWS, WIDTH)).to(dtype)
    linear = nn.Linear(WIDTH, WIDTH).to(dtype)
    problem = prepare(lambda z: torch.tanh(linear(z)) + z, x, ())
    assert not coupling(problem, problem.layout.flatten(x)).any()
    norm = nn.BatchNorm1d(WIDTH, track_running_stats=False).to(dtype)
    problem = prepare(lambda z: norm(z), torch.randn(ROWS, WIDTH).to(dtype), ())
    assert (coupling(problem, torch.randn(ROWS, WIDTH).to(problem.layout.working_dtype)) > 0).all()


def test_the_radius_of_coupled_rows_is_that_of_the_batch_as_one():
    layer, x = Equilibrium(Graph(gain=1.5), compact=False), torch.randn(ROWS, WIDTH)
    joint = torch.kron(layer.cell.adjacency, layer.cell.weight.T.contiguous()).detach()
    expected = torch.linalg.eigvals(joint).abs().max().item()
    problem = as_one_row(prepare(layer.cell, x, (x,)))
    found = spectral_radius(problem.f, x.reshape(1, -1))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    findings = {finding.name: finding for finding in diagnose(layer, x)}
    evidence = findings["spectral radius above 1"].evidence
    assert f"{expected:.4g} at the solution, with the batch taken as one row" in evidence
    graph = spectral_radius(lambda z, x: layer.cell(z[0], x[0])[None], x[None], (x[None],))  # as the message says
    assert graph.item() == pytest.approx(expected, rel=1e-5)


def test_figures_of_each_row_are_refused_where_rows_are_coupled():
    cell, x = Graph(), torch.randn(ROWS, WIDTH)
    for figure in (spectral_radius, lyapunov_exponents):
        with pytest.raises(ValueError, match=r"(?s)rows of f depend on each other .*x\[None\]"):
            figure(cell, x, (x,))
    layer = Equilibrium(cell, compact=False, rtol=1e-2)
    with pytest.warns(MonitorWarning, match="rows of f depend on each other"), Monitor(layer) as monitor:
        layer(x)
    assert monitor.samples[0].converged == 1


def test_the_penalty_of_coupled_rows_is_that_of_the_whole_jacobian():
    cell, x = Graph(), torch.randn(ROWS, WIDTH)
    joint = torch.kron(cell.adjacency, cell.weight.T.contiguous())
    expected = joint.square().sum() / joint.shape[0]
    found = jacobian_penalty(cell, x, (x,), samples=4000)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)


@pytest.mark.filterwarnings("ignore:the rows")
def test_the_audit_of_coupled_rows_measures_against_a_dense_solve():
    layer = Equilibrium(Graph().double(), compact=False, gradient=PhantomGradient()).requires_grad_(False)
    x = torch.randn(ROWS, WIDTH).double()
    v = normal(x.shape, x).flatten()  # the loss is ⟨v, z*⟩, the gradient of one step v itself
    joint = torch.kron(layer.cell.adjacency, layer.cell.weight.T.contiguous())
    exact = torch.linalg.solve(torch.eye(len(v), dtype=v.dtype) - joint.T, v)
    audit = gradient_audit(layer, x)
    assert audit.relative_error == pytest.approx(((v - exact).norm() / exact.norm()).item(), rel=1e-6)
    assert audit.cosine == pytest.approx((v @ exact / v.norm() / exact.norm()).item(), rel=1e-6)


class LateCoupling(nn.Module):
    """Rows depend on each other only where they have come far, when others have been dropped."""

    def forward(self, z, x, k):
        return k * z + (1 - k) * x - 10 * (1 - k) * torch.relu(z - 0.9) * z.std(0, correction=0)


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_rows_that_couple_after_some_were_dropped_are_solved_together(grad):
    k, x = (torch.linspace(*ends, 16, dtype=torch.float64)[:, None] for ends in ((0.1, 0.97), (0.2, 1)))
    layer = Equilibrium(LateCoupling(), solver=Picard(), rtol=1e-8, max_steps=2000)
    with torch.set_grad_enabled(grad):
        z = layer(x.clone().requires_grad_(grad), k).detach()
    image = layer.cell(z, x, k)
    assert ((image - z).norm(dim=1) <= 1.05e-8 * image.norm(dim=1)).all()


@pytest.mark.parametrize("every", [1, 7, 20, 60])
def test_coupled_rows_that_a_stretch_led_to_where_f_is_not_finite_begin_anew(every):
    for seed in range(0, 240, 8):
        torch.manual_seed(seed)
        rows, width = int(torch.randint(2, 6, ())), int(torch.randint(1, 5, ()))
        shift, matrix = torch.rand(rows, width).double() * 2, (torch.randn(width, width) * 0.4 / width**0.5).double()

        def f(z, shift=shift, matrix=matrix):
            return torch.log(2 + z @ matrix.T + 0.5 * z.mean(0, keepdim=True) + shift)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the rows depend on each other")
            found = solve(
                f, torch.zeros_like(shift), solver=NewtonKrylov(), rtol=1e-8, max_steps=200, loop=Eager(every)
            ).check()
        torch.testing.assert_close(f(found.value), found.value, rtol=1e-7, atol=1e-7)
