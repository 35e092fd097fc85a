"""What a diagnosis finds, and what it examines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from solvers import Solution, Status
from solvers.problem import DroppedRowsError, prepare

from ..calls import Call
from ..coupling import coupling
from ..parametrized import one_weight
from .rates import Tail, tails
from .tables import Line, Table

LEFT_OUT = "check left out"
"""Name of the findings that report a check as not made."""
ROWS = 8
"""Largest number of rows, spread over the batch, that an expensive check examines."""


@dataclass(frozen=True)
class Finding(Line):
    """Something that keeps a layer from converging, or its gradient from being right."""

    name: str
    """What is wrong, in a few words."""
    evidence: str
    """What was measured."""
    remedy: str
    """What to do about it."""
    layer: str = ""
    """The layer's place in the model examined; empty: the model is the layer."""

    @property
    def fault(self) -> bool:
        """Whether something is wrong, not merely unknown."""
        return self.name != LEFT_OUT

    def __str__(self) -> str:
        return f"{self.layer + ', ' if self.layer else ''}{self.name}: {self.evidence}. {self.remedy}"


class LeftOutError(Exception):
    """A check that is not made, and why."""


class Look:
    """A layer and its inputs, with the measurements that several checks share."""

    def __init__(self, call: Call) -> None:
        self.layer, self.inputs, self.z0 = call.layer, call.inputs, call.z0
        self.prefix = f"{call.name}." if call.name else ""
        """Prefix of the layer's parameter names in the model examined."""
        self.problem = prepare(call.layer.cell, call.start, call.inputs)

    @cached_property
    def solution(self) -> Solution:
        """The result of the layer's own solve, without dropping rows where they cannot be separated."""
        try:
            return self.layer.solve(*self.inputs, z0=self.z0)
        except DroppedRowsError:
            self.layer.compact = False
            return self.layer.solve(*self.inputs, z0=self.z0)

    @cached_property
    def coupling(self) -> Tensor:
        """(batch,) relative change of each row's image when others are moved."""
        with one_weight(self.layer.cell):
            return coupling(self.problem, self.value)

    @property
    def diverged(self) -> Tensor:
        """(batch,) bool: rows that grew out of bounds, including those that overflowed on the way."""
        solution = self.solution
        first, grown = solution.absolute[:1].isfinite().all(dim=0), solution.absolute.isinf().any(dim=0)
        overflowed = (solution.status == Status.NON_FINITE) & first & grown
        return (solution.status == Status.DIVERGED) | overflowed

    @property
    def floored(self) -> Tensor:
        """(batch,) bool: rows that reached the dtype's floor, and so missed a tolerance below it."""
        return self.solution.floored & (self.solution.residual > self.layer.rtol)

    @cached_property
    def tails(self) -> Table[Tail]:
        """How the residuals of each row end."""
        return tails(self.solution)

    @property
    def standing(self) -> Tensor:
        """(batch,) bool: rows that stagnate or cycle above the dtype's floor."""
        solution = self.solution
        still = torch.tensor([bool(tail.stalled or tail.period) for tail in self.tails], dtype=torch.bool, device="cpu")
        failed = (solution.status == Status.STALLED) | still.to(self.value.device)
        return ~solution.converged & ~self.floored & ~self.diverged & (solution.status != Status.NON_FINITE) & failed

    @property
    def value(self) -> Tensor:
        """(batch, dim): the value of the solution."""
        return self.problem.layout.flatten(self.solution.value)

    def image(self) -> Tensor:
        """(batch, dim): the image of the solution under the cell."""
        with torch.no_grad(), one_weight(self.layer.cell):
            return self.problem(self.value)

    def images(self, count: int) -> Tensor:
        """(count, batch, dim): `count` such images, their weights computed once as in a solve."""
        with torch.no_grad(), one_weight(self.layer.cell):
            return torch.stack([self.problem(self.value) for _ in range(count)])

    def finite(self) -> Tensor:
        """At most `ROWS` rows, spread over those whose solve stayed finite."""
        rows = torch.nonzero(self.value.isfinite().all(dim=1) & (self.solution.status != Status.NON_FINITE))[:, 0]
        chosen = torch.linspace(0, len(rows) - 1, min(ROWS, len(rows)), device=rows.device).round().long()
        return rows[chosen]


def name_rows(bad: Tensor) -> str:
    """The rows of a (batch,) mask, in words."""
    rows = torch.nonzero(bad)[:, 0].tolist()
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:8]))}{', …' if len(rows) > 8 else ''}"


def first_line(error: Exception) -> str:
    """The first line of its message."""
    return next(iter(str(error).strip().splitlines()), "")
