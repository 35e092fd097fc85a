"""Equilibria that start from a state that a network proposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from implicit import Equilibrium
from models import LearnedStart, OptDEQ, OptDNN

from .steps import Step


class Started(nn.Module):
    """Layers in sequence; the `LearnedStart` of any equilibrium among them is trained along with them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, *, own_loss: bool = False) -> Any:
        """The outputs, (batch, …), and, with `own_loss`, the sum of the starts' losses."""
        losses = []
        for layer in self.layers:
            y = layer(x)
            if own_loss and isinstance(layer, (Equilibrium, OptDEQ)) and isinstance(layer.initial, LearnedStart):
                losses.append(layer.initial.loss(y, x))
            x = y
        return (x, sum(losses)) if own_loss else x

    def training_steps(self, epoch: int, epochs: int) -> Sequence[Step]:
        """One step on the sum of the task's loss and the starts' losses."""
        return [Step({"own_loss": True}, own_loss=True)]


def proposed(transform: nn.Module) -> LearnedStart:
    """`z0 = x + T(x)`: one explicit layer."""
    return LearnedStart(OptDNN("gd", [transform]))
