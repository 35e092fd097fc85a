"""Compiled cells, and attention, where they are differentiated twice or looked at."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from implicit import Equilibrium
from implicit.compiled import uncompiled_cells
from implicit.diagnostics import (
    compare_gradients,
    diagnose,
    gradient_audit,
    jacobian_penalty,
    lyapunov_exponents,
    spectral_radius,
)
from implicit.monitoring import Monitor

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:The .grad attribute:UserWarning")


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, z, x):
        return 0.3 * self.b(torch.tanh(self.norm(self.a(z) + x)))


def whole(cell):
    return torch.compile(cell)


def in_place(cell):
    cell.compile()
    return cell


def part(cell):
    cell.norm = torch.compile(cell.norm)
    return cell


@pytest.fixture(params=[whole, in_place, part])
def cells(request):
    """One cell, plain and compiled."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    cell = Cell()
    return cell, request.param(copy.deepcopy(cell))


def penalised(cell, z, x):
    torch.manual_seed(1)
    penalty = jacobian_penalty(cell, z, (x,))
    return penalty, torch.autograd.grad(penalty, list(cell.parameters()), materialize_grads=True)


def test_the_penalty_of_a_compiled_cell_is_that_of_the_plain_one(cells):
    plain, compiled = cells
    z, x = torch.randn(2, 5, 8)
    compiled(z, x)  # as in a solve before
    expected, gradients = penalised(plain, z, x)
    found, others = penalised(compiled, z, x)
    torch.testing.assert_close(found, expected)
    for one, other in zip(others, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_diagnostics_of_a_compiled_cell_are_those_of_the_plain_one(cells):
    plain, compiled = cells
    x = torch.randn(5, 8)
    layer = Equilibrium(compiled)
    with torch.no_grad():
        z = layer(x)
    assert diagnose(layer, x) == diagnose(Equilibrium(plain), x) == []
    torch.testing.assert_close(spectral_radius(compiled, z, (x,)), spectral_radius(plain, z, (x,)), rtol=1e-4, atol=0)
    lyapunov = (lyapunov_exponents(cell, z, (x,), steps=5, discard=2) for cell in (compiled, plain))
    torch.testing.assert_close(*lyapunov, rtol=1e-3, atol=1e-3)
    assert gradient_audit(layer, x).cosine > 0.9999
    assert compare_gradients(layer, x, gradients={"it": layer.gradient}, rtols=[1e-4])[0].relative_error < 1e-2
    with Monitor(layer) as monitor, torch.no_grad():
        layer(x)
    assert monitor.samples[0].gradient_cosine > 0.9999


def test_code_runs_compiled_again_afterwards():
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    f = torch.compile(lambda z: z + 1, backend=backend)
    with uncompiled_cells():
        f(torch.ones(2))
    assert not traced
    f(torch.ones(2))
    assert len(traced) == 1


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, z, x):
        q, k, v = self.qkv(z).unflatten(-1, (2, 3, 4)).transpose(-4, -3).unbind(-2)
        return torch.tanh(0.5 * F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2) + x)


class ByHand(Attention):
    def forward(self, z, x):
        q, k, v = self.qkv(z).unflatten(-1, (2, 3, 4)).transpose(-4, -3).unbind(-2)
        weights = torch.softmax(q @ k.mT / 2, dim=-1)
        return torch.tanh(0.5 * (weights @ v).transpose(-3, -2).flatten(-2) + x)


def test_the_penalty_reaches_the_weights_of_fused_attention():
    torch.manual_seed(0)
    fused, by_hand = Attention(), ByHand()
    by_hand.load_state_dict(fused.state_dict())
    z, x = torch.randn(2, 3, 5, 8)
    for one, other in zip(penalised(fused, z, x)[1], penalised(by_hand, z, x)[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    heads = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    penalty = jacobian_penalty(lambda z: 0.1 * heads(z), z)
    penalty.backward()
    assert heads.self_attn.in_proj_weight.grad.abs().sum() > 0
