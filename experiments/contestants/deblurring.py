"""The contestants of the inverse problem: a classical algorithm, and networks that start as that algorithm.

The algorithm minimises `½‖Bx − y‖² + λ Σ log cosh(Dx / κ)`, B the blur, D differences of neighbours: convex, smooth,
and close to total variation. G and P start as gradient steps on its two terms, and are learned from there.
The second term adds curvature, for which explicit layers must take shorter steps than proximal ones.
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

from ..tasks.deblurring import blur
from ..tasks.task import Task
from .contestant import Contestant, Contestants, against

LAYERS = 8
WEIGHT, KINK = 1e-5, 1e-2
"""λ, and κ, the difference of neighbours beyond which the penalty grows linearly."""
PROXIMAL_STEP = 1.0
"""1 over the largest eigenvalue of BᵀB, the first term's curvature."""
EXPLICIT_STEP = 1 / (1 + 8 * WEIGHT / KINK**2)
"""1 over the largest curvature of both terms together; 8 is the largest eigenvalue of DᵀD."""


class DataStep(nn.Module):
    """`G(z, y) = −s Bᵀ(Bz − y)`, s learned."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(math.log(step)))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """(batch, 1, height, width), like z and y."""
        return -self.log_step.exp() * blur(blur(z) - y)


class EdgeStep(nn.Module):
    """`P(z) = −Wᵀ ρ tanh(Wz / ρ)`, W learned 3×3 filters on the periodic picture: −P is monotone for every W.

    At the start `W = √(sλ)/κ D` and `ρ = √(sλ)`, which makes it a gradient step of length s.
    """

    def __init__(self, step: float) -> None:
        super().__init__()
        scale = math.sqrt(step * WEIGHT) / KINK
        self.filters = nn.Parameter(torch.zeros(2, 1, 3, 3))
        with torch.no_grad():
            self.filters[:, 0, 1, 1] = -scale
            self.filters[0, 0, 1, 2] = self.filters[1, 0, 2, 1] = scale
        self.kink = scale * KINK

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        """(batch, 1, height, width), like z."""
        differences = F.conv2d(F.pad(z, (1, 1, 1, 1), mode="circular"), self.filters)
        bounded = self.kink * torch.tanh(differences / self.kink)
        # the adjoint of a correlation is the correlation with the flipped filters
        turned = self.filters.flip(2, 3).transpose(0, 1)
        return -F.conv2d(F.pad(bounded, (1, 1, 1, 1), mode="circular"), turned)


class Restored(nn.Module):
    """`y ↦ net(y, y)`: starts from the blurred picture and passes it to every layer."""

    def __init__(self, net: OptDNN) -> None:
        super().__init__()
        self.net = net

    def forward(self, y: Tensor) -> Tensor:
        """(batch, 1, height, width), like y."""
        output: Tensor = self.net(y, y)
        return output


def unrolled(method: str, alpha: float, depth: int = LAYERS) -> Restored:
    """`depth` layers, each with its own step and filters; untrained, `depth` steps of the algorithm."""
    step = EXPLICIT_STEP if alpha == 1 else PROXIMAL_STEP
    layers = [(DataStep(step), EdgeStep(step)) for _ in range(depth)]
    return Restored(OptDNN(method, layers, alpha=alpha))


def equilibrium(method: str, *, rtol: float = 1e-4, max_steps: int = 200) -> OptDEQ:
    """One tied layer at infinite depth; untrained, its equilibrium is the optimum."""
    pair = (DataStep(EXPLICIT_STEP), EdgeStep(EXPLICIT_STEP))
    return OptDEQ(METHODS[method].frozen(), pair, rtol=rtol, max_steps=max_steps, initial=torch.clone)


def optimum(y: Tensor, *, rtol: float = 1e-8) -> Tensor:
    """The classical restoration, (batch, 1, height, width), to a relative residual of `rtol`, computed in float64."""
    y64 = y.detach().double()
    with torch.no_grad():
        data, edges = (kind(EXPLICIT_STEP).to(y64) for kind in (DataStep, EdgeStep))

        def step(z: Tensor, y: Tensor) -> Tensor:
            return z + data(z, y) + edges(z)

        found = solve(step, y64, (y64,), solver=Anderson(memory=20), rtol=rtol, max_steps=2000, compact=True)
        value = found.check().value
    assert isinstance(value, Tensor)
    return value.to(y.dtype)


class Classical(nn.Module):
    """The algorithm run to convergence; nothing is learned."""

    def forward(self, y: Tensor) -> Tensor:
        """(batch, 1, height, width), like y."""
        return optimum(y, rtol=1e-6)


def restorers(task: Task) -> Contestants:
    """The algorithm, and its networks in every reading; all have a fixed size."""

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
    return against("pgd-explicit", 1, rows)
