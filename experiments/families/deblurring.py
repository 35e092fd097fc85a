"""The contestants of the inverse problem: a classical algorithm, and networks that start as it.

The algorithm minimises `½‖Bx − y‖² + Σ ρ² log cosh(Wx / ρ)`, B the blur, W scaled differences of neighbours: convex and
smooth. Its gradient step is G, its regulariser's P; both are learned from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import METHODS, OptDEQ, OptDNN
from solvers import Anderson, solve

from ..tasks import Task
from ..tasks.deblurring import blur
from .base import Contestant, Family

LAYERS = 8
STEP = 1.0
"""1 over the largest eigenvalue of BᵀB."""
WEIGHT, KINK = 1e-4, 0.1
"""λ, and the difference of neighbours from which the penalty grows linearly."""


class DataStep(nn.Module):
    """`G(z, y) = −s Bᵀ(Bz − y)`, s learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(math.log(STEP)))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """(batch, 1, height, width), like z and y."""
        return -self.log_step.exp() * blur(blur(z) - y)


class EdgeStep(nn.Module):
    """`P(z) = −Wᵀ ρ tanh(Wz / ρ)`, W learned 3×3 filters on the periodic picture: −P is monotone for every W."""

    def __init__(self) -> None:
        super().__init__()
        filters = torch.zeros(2, 1, 3, 3)
        filters[:, 0, 1, 1] = -1.0
        filters[0, 0, 1, 2] = filters[1, 0, 2, 1] = 1.0
        scale = math.sqrt(STEP * WEIGHT) / KINK
        self.filters = nn.Parameter(scale * filters)
        self.kink = scale * KINK

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        """(batch, 1, height, width), like z."""
        differences = F.conv2d(F.pad(z, (1, 1, 1, 1), mode="circular"), self.filters)
        bounded = self.kink * torch.tanh(differences / self.kink)
        # the adjoint of a correlation is the correlation with the turned filters
        turned = self.filters.flip(2, 3).transpose(0, 1)
        return -F.conv2d(F.pad(bounded, (1, 1, 1, 1), mode="circular"), turned)


class Restored(nn.Module):
    """`y ↦ net(y, y)`: starts from the blurred picture and knows it in every layer."""

    def __init__(self, net: OptDNN) -> None:
        super().__init__()
        self.net = net

    def forward(self, y: Tensor) -> Tensor:
        """(batch, 1, height, width), like y."""
        output: Tensor = self.net(y, y)
        return output


def unrolled(method: str, alpha: float, depth: int = LAYERS) -> Restored:
    """So many layers, each with a step and filters of its own; untrained, so many steps of the algorithm."""
    layers = [(DataStep(), EdgeStep()) for _ in range(depth)]
    return Restored(OptDNN(method, layers, alpha=alpha))


def equilibrium(method: str, *, rtol: float = 1e-4, max_steps: int = 200) -> OptDEQ:
    """One tied layer at infinite depth; untrained, its equilibrium is the optimum."""
    pair = (DataStep(), EdgeStep())
    return OptDEQ(METHODS[method].frozen(), pair, rtol=rtol, max_steps=max_steps, initial=torch.clone)


def optimum(y: Tensor, *, rtol: float = 1e-10) -> Tensor:
    """The classical restoration, (batch, 1, height, width), to a relative residual of `rtol`; worked in float64."""
    y64 = y.detach().double()
    with torch.no_grad():
        data, edges = DataStep().double(), EdgeStep().double()
        found = solve(lambda z: z + data(z, y64) + edges(z), y64, solver=Anderson(memory=20), rtol=rtol, max_steps=2000)
        value = found.check().value
    assert isinstance(value, Tensor)
    return value.to(y.dtype)


class Classical(nn.Module):
    """The algorithm run to convergence; nothing is learned."""

    def forward(self, y: Tensor) -> Tensor:
        """(batch, 1, height, width), like y."""
        return optimum(y, rtol=1e-6)


def restorers(task: Task) -> Family:
    """The algorithm, and its networks in every reading; all of one size."""

    def row(reading: str, description: str, make: Callable[[], nn.Module]) -> Contestant:
        return Contestant(reading, description, lambda _: make(), fixed=True)

    rows = {"classical": row("algorithm", "the classical algorithm run to convergence", Classical)}
    for method in ("pgd", "fista"):
        for reading, alpha in (("explicit", 1.0), ("implicit", 0.0)):
            words = f"{method}, {LAYERS} layers, alpha = {alpha:g}"
            rows[f"{method}-{reading}"] = row(reading, words, partial(unrolled, method, alpha))
        rows[f"{method}-deq"] = row(
            "equilibrium", f"{method}, infinite depth, one tied layer", partial(equilibrium, method)
        )
    return Family(rows, dial=1, baseline="pgd-explicit")
