"""What a diagnosis finds, and what it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from solvers import Solution, Status
from solvers.problem import prepare

from ..equilibrium import Equilibrium
from ..parametrized import one_weight

ROWS = 8
"""At most so many rows, spread over the batch, are looked at where a look is dear."""


@dataclass(frozen=True)
class Finding:
    """Something that keeps a layer from converging, or its gradient from being right."""

    name: str
    """What is wrong, in a few words."""
    evidence: str
    """What was measured."""
    remedy: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}. {self.remedy}"

    def to_dict(self) -> dict[str, str]:
        """The fields."""
        return dict(vars(self))


class Look:
    """A layer, its inputs, and what is found about them at most once."""

    def __init__(self, layer: Equilibrium, inputs: tuple[Any, ...]) -> None:
        self.layer, self.inputs = layer, inputs
        self.problem = prepare(layer.cell, layer._start(inputs, None), inputs, compact=False)

    @cached_property
    def solution(self) -> Solution:
        """Of the layer's own solve."""
        return self.layer.solve(*self.inputs)

    @property
    def value(self) -> Tensor:
        """(batch, dim)."""
        return self.problem.layout.flatten(self.solution.value)

    @property
    def by_row(self) -> bool:
        """Whether every input has the batch in dim 0, so that rows can be looked at alone."""
        tensors = [value for value in self.inputs if isinstance(value, Tensor)]
        return all(value.ndim and len(value) == self.problem.layout.batch for value in tensors)

    def image(self) -> Tensor:
        """(batch, dim): of the solution, under the cell."""
        with torch.no_grad(), one_weight(self.layer.cell):
            return self.problem(self.value)

    def finite(self) -> Tensor:
        """At most `ROWS` rows, spread over those whose solve stayed finite."""
        rows = torch.nonzero(self.value.isfinite().all(dim=1) & (self.solution.status != Status.NON_FINITE))[:, 0]
        chosen = torch.linspace(0, len(rows) - 1, min(ROWS, len(rows)), device=rows.device).round().long()
        return rows[chosen]


def name_rows(bad: Tensor) -> str:
    """In words, of a (batch,) mask."""
    rows = torch.nonzero(bad)[:, 0].tolist()
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:8]))}{', …' if len(rows) > 8 else ''}"
