"""Equilibria that start where a network proposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from implicit import Equilibrium
from models import LearnedStart, OptDEQ, OptDNN

from .steps import Step


class Started(nn.Module):
    """Layers one after the other, some of which are equilibria with a `LearnedStart`, trained beside them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, *, own_loss: bool = False) -> Any:
        """The outputs, (batch, …); with the sum of the starts' losses, where these are asked for."""
        losses = []
        for layer in self.layers:
            y = layer(x)
            if own_loss and isinstance(layer, (Equilibrium, OptDEQ)) and isinstance(layer.initial, LearnedStart):
                losses.append(layer.initial.loss(y, x))
            x = y
        return (x, sum(losses)) if own_loss else x

    def training_steps(self, epoch: int, epochs: int) -> Sequence[Step]:
        """One step on the loss and that of the starts."""
        return [Step({"own_loss": True}, own_loss=True)]


def proposed(transform: nn.Module) -> LearnedStart:
    """`z0 = x + T(x)`: one explicit layer."""
    return LearnedStart(OptDNN("gd", [transform]))
