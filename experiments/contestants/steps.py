"""The optimiser's steps on each batch, for networks that do not simply take one step on their loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Step:
    """A step of the optimiser on a batch."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network's call, beside the inputs."""
    largest_norm: float | None = None
    """Norm to which the gradient is clipped; None: no clipping."""
    own_loss: bool = False
    """Whether the call returns its outputs and a loss of the network's own, which is added to the task's."""


@runtime_checkable
class Stepwise(Protocol):
    """A network that defines the steps on each batch; any other network takes one step on its loss."""

    def training_steps(self, epoch: int, epochs: int) -> Sequence[Step]:
        """The steps, at least one, on a batch in the given epoch, counted from 0, out of `epochs`."""
        ...
