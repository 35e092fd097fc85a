"""Rows that turn out to depend on each other: the batch as one problem, all of whose rows must converge together."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .norms import Norm
from .problem import Problem
from .state import Layout


class JointProblem(Problem):
    """A problem of one row, which holds all rows of another."""

    def __init__(self, problem: Problem) -> None:
        layout = problem.layout
        one = torch.empty(1, layout.batch * sum(layout.sizes), dtype=layout.dtype, device=layout.device)
        super().__init__(problem.f, (), Layout(one))
        self.problem = problem
        self.layout.working_dtype = layout.working_dtype
        self.relative_to_start = problem.relative_to_start  # type: ignore[misc]

    def __call__(self, flat: Tensor) -> Tensor:
        return self.problem(self._rows(flat)).reshape(1, -1)

    def residual(self, flat: Tensor) -> Tensor:
        return self.problem.residual(self._rows(flat)).reshape(1, -1)

    def _rows(self, flat: Tensor) -> Tensor:
        return flat.view(self.problem.layout.batch, -1)

    def _pair(self, z: Tensor) -> tuple[Tensor, Tensor]:
        image, residual = self.problem._pair(self._rows(z))
        return image.reshape(1, -1), residual.reshape(1, -1)


@dataclass(frozen=True)
class WorstRow(Norm):
    """That of the row which is furthest above its tolerance."""

    norm: Norm
    count: int

    def measure(self, residual: Tensor, image: Tensor, rtol: float, atol: float, robust: bool) -> Tensor:
        residual, image = (x.unflatten(-1, (self.count, -1)).squeeze(-3) for x in (residual, image))
        norms = self.norm.measure(residual, image, rtol, atol, robust)
        excess = torch.where(norms[0] == 0, 0, norms[0] / (atol + rtol * norms[1]))
        worst = excess.argmax(dim=-1, keepdim=True)  # a NaN, where there is one
        return norms.gather(-1, worst.expand(2, *worst.shape))


def warn_of_coupling() -> None:
    """What is done about it, and what to do."""
    warnings.warn(
        "the rows depend on each other: some that were held changed while others moved on. The batch is solved as one "
        "problem, whose rows converge together. If it is one, say so: make it one row, z0[None] and x[None] (a graph, "
        "whose nodes are no rows). If not, replace batch statistics by GroupNorm or LayerNorm, and draw random numbers "
        "outside f",
        RuntimeWarning,
        stacklevel=6,
    )
