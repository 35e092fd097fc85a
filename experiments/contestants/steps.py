"""How a network is trained by each batch, where that is not one step on its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Step:
    """A step of the optimiser on a batch."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """By name, of the network's call, beside the inputs."""
    largest_norm: float | None = None
    """To which the gradient is clipped; None: it is not."""
    own_loss: bool = False
    """Whether the call returns its outputs and a loss of the network's own, which is added to the task's."""


@runtime_checkable
class Stepwise(Protocol):
    """A network that says by which steps each batch trains it; the others are trained by one on their loss."""

    def training_steps(self, epoch: int, epochs: int) -> Sequence[Step]:
        """Of a batch in that epoch, counted from 0, of so many; one at least."""
        ...
