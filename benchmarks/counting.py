"""Evaluations of f counted inside f, whatever a solver reports of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .problem import Map, Problem


class Counted:
    """f with a count of its calls, and of the rows in them."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        self.f, self.calls, self.rows = f, 0, 0

    def __call__(self, z: Tensor, *args: Any) -> Tensor:
        self.calls += 1
        self.rows += len(z)
        return self.f(z, *args)


class Finished(Exception):
    """Raised inside f when nothing is left to measure; solvers catch RuntimeError and ValueError, so it is neither."""


class Watch:
    """Records the evaluation at which each row first met `‖f(z) − z‖ ≤ rtol ‖f(z)‖`.

    A peer's own stopping test differs from ours (absolute, the largest entry, the whole batch). Checked inside f, the
    same test applies to all, without any extra evaluation.
    """

    def __init__(self, rows: int, rtol: float, limit: int) -> None:
        self.rtol, self.limit, self.calls = rtol, limit, 0
        self.reached: list[int | None] = [None] * rows

    def note(self, residual: Sequence[float], scale: Sequence[float]) -> None:
        """Record one evaluation, given the norms of each row."""
        self.calls += 1
        for row, (size, image) in enumerate(zip(residual, scale)):
            if self.reached[row] is None and size <= self.rtol * image:
                self.reached[row] = self.calls

    @property
    def done(self) -> bool:
        return self.calls >= self.limit or None not in self.reached

    @property
    def evaluations(self) -> float:
        """Mean over the rows; infinite if one never met the test."""
        found = [calls for calls in self.reached if calls is not None]
        return sum(found) / len(found) if len(found) == len(self.reached) else math.inf

    def over(self, f: Map) -> Map:
        """f, watched; raises `Finished` at the evaluation that settles the last row."""

        def watched(z: Tensor) -> Tensor:
            image = f(z)
            self.note(row_norms(image - z).tolist(), row_norms(image).tolist())
            if self.done:
                raise Finished
            return image

        return watched


def row_norms(state: Tensor) -> Tensor:
    """(rows,) Euclidean norms."""
    return torch.linalg.vector_norm(state.flatten(1), dim=1)


def relative_residual(problem: Problem, value: Tensor) -> Tensor:
    """(rows,) `‖f(z) − z‖ / ‖f(z)‖`, by one more evaluation."""
    image = problem.f(value)
    return row_norms(image - value) / row_norms(image)
