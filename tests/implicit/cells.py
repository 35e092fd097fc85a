"""Cells and layers that the tests of gradients share."""

import torch
from torch import nn

from implicit import Equilibrium, ImplicitGradient
from solvers import GMRES

DIM = 6
TIGHT = {"rtol": 1e-13, "atol": 0.0, "max_steps": 400}


class Cell(nn.Module):
    """A contraction in z, of norm about 0.6."""

    def __init__(self, dim=DIM):
        super().__init__()
        self.inner = nn.Linear(dim, dim, dtype=torch.float64)
        with torch.no_grad():
            self.inner.weight.mul_(0.6 / torch.linalg.matrix_norm(self.inner.weight, 2))

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + x)


def exact(solver=GMRES(), **options):
    return ImplicitGradient(solver=solver, rtol=1e-13, max_steps=400, **options)


def tight_layer(cell=None, gradient=None, **options):
    return Equilibrium(Cell() if cell is None else cell, gradient=gradient or exact(), **{**TIGHT, **options})


def inputs(rows=3):
    return torch.randn(rows, DIM, dtype=torch.float64, requires_grad=True)


def unrolled(cell, x, steps=120):
    """The equilibrium by plain steps that autograd sees, from a start without a graph."""
    z = torch.zeros_like(x)
    for _ in range(steps):
        z = cell(z, x)
    return z


def textbook(cell, x, steps, tracked=None, z=None):
    """The loop as one writes it, its first steps without gradients."""
    z = torch.zeros_like(x) if z is None else z
    tracked = steps if tracked is None else min(tracked, steps)
    with torch.no_grad():
        for _ in range(steps - tracked):
            z = cell(z, x)
    for _ in range(tracked):
        z = cell(z, x)
    return z


class Residual(Cell):
    """Steps that do not settle."""

    def forward(self, z, x):
        return z + super().forward(z, x).sin()


def agree(found, expected):
    """To rounding in float64."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def alike(call, eager, captured):
    """Compare values and gradients of a call of both layers."""
    found = []
    for layer in (eager, captured):
        layer.zero_grad()
        value = call(layer)
        value.float().square().sum().backward()
        found.append([value.detach(), *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
