"""Networks that think about puzzles: one small transformer cell, read as a loop and as an equilibrium."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implicit import Equilibrium, ImplicitGradient, Looped, PhantomGradient
from models import segments
from solvers import Anderson

from ..errors import InputError
from ..tasks.goals import ExactMatch
from ..tasks.task import Task
from .contestant import Contestant, Contestants, against
from .steps import Step

WIDTH, HEADS, HIDDEN = 32, 4, 64
STEPS = 8
"""Steps of the loops, in training and by default; each evaluates both levels."""
SEGMENTS, SEGMENT = 2, 4
"""Supervised segments, and the steps of each: `STEPS` in all."""
State = tuple[Tensor, Tensor]
Make = Callable[["Levels"], "Looped[State] | Equilibrium[State]"]


class Block(nn.Module):
    """`z ↦ n(y + MLP(y))`, `y = n(z + attention(z))`, n a normalisation of each token to length √width."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.inner, self.outer = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, z: Tensor) -> Tensor:
        """(batch, cells, width), like z."""
        heads = self.mix(z).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        z = _unit(z + self.out(mixed))
        return _unit(z + self.outer(F.gelu(self.inner(z))))


class Levels(nn.Module):
    """`low⁺ = B₁(low + high + U x + positions)`, `high⁺ = B₂(high + low⁺)`: a state of two levels."""

    def __init__(self, cells: int, symbols: int, hidden: int) -> None:
        super().__init__()
        self.low, self.high = Block(hidden), Block(hidden)
        self.inject, self.positions = nn.Linear(symbols, WIDTH), nn.Parameter(torch.randn(cells, WIDTH))

    def forward(self, z: State, x: Tensor) -> State:
        """(batch, cells, width) each."""
        high, low = z
        low = self.low(low + high + self.inject(x) + self.positions)
        return self.high(high + low), low


class Thinker(nn.Module):
    """(batch, digits, cells) logits, read from the upper level of a layer's state."""

    def __init__(self, layer: Looped[State] | Equilibrium[State], digits: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(WIDTH, digits)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.layer(x))

    def answer(self, z: State) -> Tensor:
        """The logits of a state."""
        logits: Tensor = self.head(z[0]).transpose(1, 2)
        return logits

    def after(self, x: Tensor, steps: Sequence[int]) -> Iterator[Tensor]:
        """The answers after each of these increasing numbers of steps, whatever the network was trained for."""
        plain, z, taken = Looped(self.layer.cell, steps=1, initial=self.layer.initial), None, 0
        for count in steps:
            z, taken = plain(x, z0=z, steps=count - taken), count
            yield self.answer(z)


class RandomDepths(Thinker):
    """In training each row takes 1 + Poisson(STEPS − 1) steps, drawn for each batch. Source: Geiping et al., 2025."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        depths = 1 + torch.poisson(torch.full((len(x),), STEPS - 1.0, device="cpu")).long()
        return self.answer(self.layer(x, steps=depths))


class Segmented(Thinker):
    """In training each batch makes SEGMENTS optimiser steps, each from the state where the last segment ended."""

    _under_way: Iterator[State] | None = None

    def training_steps(self, epoch: int, epochs: int) -> Sequence[Step]:
        """The optimiser's steps on a batch: one for each segment."""
        return [Step({"segment": segment}) for segment in range(SEGMENTS)]

    def forward(self, x: Tensor, *, segment: int | None = None) -> Tensor:
        """The logits after the next segment or, if `segment` is None, after all of them."""
        if segment is None:
            *_, z = segments(self.layer, x, count=SEGMENTS)
            return self.answer(z)
        if segment == 0 or self._under_way is None:
            self._under_way = segments(self.layer, x, count=SEGMENTS)
        z = next(self._under_way)
        if segment == SEGMENTS - 1:
            self._under_way = None  # a generator under way cannot be copied with the network
        return self.answer(z)


class Stack(nn.Module):
    """Different blocks in sequence: a transformer that repeats none of them."""

    def __init__(self, cells: int, symbols: int, digits: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.inject, self.positions = nn.Linear(symbols, WIDTH), nn.Parameter(torch.randn(cells, WIDTH))
        self.blocks = nn.Sequential(*(Block(hidden) for _ in range(depth)))
        self.head = nn.Linear(WIDTH, digits)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, digits, cells) logits."""
        logits: Tensor = self.head(self.blocks(self.inject(x) + self.positions)).transpose(1, 2)
        return logits


def thinkers(task: Task) -> Contestants:
    """The cell in every reading, beside transformers that repeat nothing."""
    if not isinstance(task.goal, ExactMatch):
        raise InputError(f"task {task.name}: networks for puzzles need the goal ExactMatch(classes)")
    x, _ = task.sample(1)
    _, cells, symbols = x.shape
    digits = task.goal.classes

    def start(x: Tensor) -> State:
        zeros = x.new_zeros(len(x), cells, WIDTH)
        return zeros, zeros

    def row(reading: str, words: str, make: Make, kind: type[Thinker] = Thinker) -> Contestant:
        return Contestant(reading, words, lambda hidden: kind(make(Levels(cells, symbols, hidden)), digits))

    def loop(steps: int, tracked: int | None = None) -> Make:
        return lambda cell: Looped(cell, steps=steps, tracked=tracked, initial=start)

    def equilibrium(gradient: ImplicitGradient | PhantomGradient) -> Make:
        return lambda cell: Equilibrium(
            cell, solver=Anderson(), rtol=1e-3, min_steps=6, max_steps=16, gradient=gradient, initial=start
        )

    rows = {
        "looped": row("looped", f"{STEPS} steps, all differentiated", loop(STEPS)),
        "looped-last": row("looped", f"{STEPS} steps, the last two differentiated", loop(STEPS, 2)),
        "looped-poisson": row("looped", f"{STEPS} steps on average, drawn for each row", loop(STEPS), RandomDepths),
        "looped-segments": row(
            "looped",
            f"{SEGMENTS} segments of {SEGMENT} steps, the last of each differentiated, an update after each",
            loop(SEGMENT, 1),
            Segmented,
        ),
        "deq": row("equilibrium", "the exact gradient", equilibrium(ImplicitGradient(rtol=1e-2, max_steps=16))),
        "deq-jfb": row("equilibrium", "the Jacobian-free gradient", equilibrium(PhantomGradient(steps=1))),
        "stack": Contestant(
            "explicit", "the two blocks of the cell, each once", lambda hidden: Stack(cells, symbols, digits, hidden, 2)
        ),
        "stack-deep": Contestant(
            "explicit",
            f"{2 * STEPS} different blocks: as many as {STEPS} steps of the cell evaluate",
            lambda _: Stack(cells, symbols, digits, HIDDEN, 2 * STEPS),
            fixed=True,
        ),
    }
    return against("looped", HIDDEN, rows)


def _unit(z: Tensor) -> Tensor:
    return F.rms_norm(z, (WIDTH,))
