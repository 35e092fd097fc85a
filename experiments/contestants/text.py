"""Language models built from a causal transformer block: explicit, tied, looped, as an equilibrium, side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from implicit import Equilibrium, Looped, NeumannGradient
from models import AttentionMLP, LearnedStart, OptDNN
from models.branches import Branches
from solvers import Anderson

from ..errors import InputError
from ..tasks.goals import NextCharacter
from ..tasks.task import Task
from .contestant import Contestant, Contestants, against
from .started import Started

HEADS, DEPTH, SIZE = 2, 4, 64
"""Heads of the attention; blocks and size of the explicit network."""
STEPS, TRACKED = 8, 4
"""Steps of the looped network, and how many of the last ones are differentiated."""


def language_models(task: Task) -> Contestants:
    """Networks from windows of characters to logits of the next ones; the size is the hidden width of a block's MLP.

    The tokens are half as wide, so that a single block has room to match many in parameters and in work.
    """
    if not isinstance(task.goal, NextCharacter):
        raise InputError(f"task {task.name}: language models need the goal NextCharacter, not {task.goal!r}")
    characters, (windows, _) = task.goal.characters, task.sample(1)
    length = windows.shape[1]

    def row(
        reading: str,
        description: str,
        body: Callable[[int, int], nn.Module],
        network: Callable[..., nn.Module] = nn.Sequential,
    ) -> Contestant:
        def build(size: int) -> nn.Module:
            width = HEADS * max(1, round(size / (2 * HEADS)))
            embedding = Embedding(characters, length, width)
            return network(embedding, body(width, size), nn.LayerNorm(width), nn.Linear(width, characters))

        return Contestant(reading, description, build)

    rows = {
        "explicit": row("explicit", f"{DEPTH} transformer blocks", explicit),
        "tied": row("explicit", f"one transformer block, {DEPTH} times", tied),
        "looped": row(
            "looped", f"one block with its input injected, {STEPS} steps, gradient of the last {TRACKED}", looped
        ),
        "deq": row("equilibrium", "the equilibrium of the looped block, one-step adjoint", equilibrium),
        "deq-start": row("equilibrium", "deq started where a small network proposes", started_equilibrium, Started),
        "paraformer": row("parallel", f"Para-Former: {DEPTH} blocks side by side, summed", side_by_side),
    }
    return against("explicit", SIZE, rows)


class Embedding(nn.Module):
    """Character numbers (batch, length) to tokens (batch, length, width): the character's vector plus the place's."""

    def __init__(self, characters: int, length: int, width: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))

    def forward(self, windows: Tensor) -> Tensor:
        most = len(self.places)
        if windows.ndim != 2 or windows.shape[1] > most:
            raise ValueError(f"windows of shape {tuple(windows.shape)} given, (batch, at most {most}) expected")
        tokens: Tensor = self.characters(windows) + self.places[: windows.shape[1]]
        return tokens


def block(width: int, hidden: int) -> AttentionMLP:
    """`T(z)` of the causal pre-norm transformer block `z + T(z)`."""
    return AttentionMLP(width, HEADS, hidden, causal=True)


class Cell(nn.Module):
    """`norm(y + T(y))` with `y = z + x`: the block on the state and the injected tokens, normalised to stay bounded."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.block, self.norm = block(width, hidden), nn.LayerNorm(width)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        y = z + x
        output: Tensor = self.norm(y + self.block(y))
        return output


def explicit(width: int, hidden: int) -> nn.Module:
    return OptDNN("gd", [block(width, hidden) for _ in range(DEPTH)])


def tied(width: int, hidden: int) -> nn.Module:
    return OptDNN("gd", [block(width, hidden)] * DEPTH)


def looped(width: int, hidden: int) -> nn.Module:
    return Looped(Cell(width, hidden), steps=STEPS, tracked=TRACKED)


def equilibrium(width: int, hidden: int) -> Equilibrium:
    """The equilibrium as in attractor models, arXiv 2605.12466; its adjoint takes one step of `u = g + Jᵀu` from `g`.

    The fixed point is causal. Anderson mixes and stops whole windows, so its result is causal to the tolerance only.
    """
    return Equilibrium(
        Cell(width, hidden),
        solver=Anderson(memory=5),
        gradient=NeumannGradient(steps=1),
        rtol=3e-4,
        min_steps=6,
        max_steps=64,
    )


def started_equilibrium(width: int, hidden: int) -> Equilibrium:
    """The equilibrium from a start that a block with a small MLP proposes; a good start needs no `min_steps`."""
    layer = equilibrium(width, hidden)
    layer.initial = LearnedStart(nn.Sequential(OptDNN("gd", [block(width, width)]), nn.LayerNorm(width)))
    layer.min_steps = 0
    return layer


def side_by_side(width: int, hidden: int) -> nn.Module:
    return Branches(DEPTH, depth=1, width=width, heads=HEADS, hidden=hidden, causal=True)
