"""Some rows of a problem, whether or not f can be evaluated without the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from solvers import State
from solvers.problem import Problem, prepare
from solvers.state import tree_leaves, tree_map

ALIKE = 100
"""Rounding units by which the image of a row may change when it is evaluated without the others."""


class AmongOthers:
    """The map of some rows among the others, which are held fixed."""

    def __init__(self, problem: Problem, flat: Tensor, rows: Tensor) -> None:
        self.problem, self.flat, self.rows = problem, flat, rows

    def __call__(self, z: State) -> State:
        layout = self.problem.layout
        return layout.unflatten(self.problem(self.flat.index_copy(0, self.rows, layout.flatten(z)))[self.rows])


def few_rows(problem: Problem, flat: Tensor, rows: Tensor) -> Problem:
    """The problem of these rows alone, or of `AmongOthers` if f fails or gives other values without the others.

    Which arguments have the batch in dim 0 is found by trial, since a tensor that rows share may be as long. f may need
    the other rows because its cell holds a mask for the whole batch, or because rows are coupled.

    Args:
        problem: of all rows.
        flat: (batch, dim), where the two are compared.
        rows: positions of the rows.
    """
    if len(rows) == problem.layout.batch:
        return problem
    with torch.no_grad():
        image = problem(flat)[rows]
        allowed = ALIKE * problem.rounding * (torch.linalg.vector_norm(image, dim=1) + 1)
        for args in _selected(problem.args, problem.layout.batch, rows):
            alone = prepare(problem.f, problem.layout.unflatten(flat[rows]), args)
            try:
                change = torch.linalg.vector_norm((alone(flat[rows]) - image).nan_to_num(), dim=1)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # however a cell fails on another batch size
                continue
            if bool((change <= allowed.nan_to_num()).all()):
                return alone
    return prepare(AmongOthers(problem, flat, rows), problem.layout.unflatten(flat[rows]), ())


def _selected(args: tuple[Any, ...], batch: int, rows: Tensor) -> Iterator[tuple[Any, ...]]:
    """Trial arguments for these rows: every tensor as long as the batch is taken as per row, then only the first."""
    likely = [isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == batch for leaf in tree_leaves(args)]
    for count in sorted({sum(likely), min(1, sum(likely))}, reverse=True):
        chosen = iter([by_row and sum(likely[: place + 1]) <= count for place, by_row in enumerate(likely)])
        yield tree_map(lambda leaf: leaf.index_select(0, rows) if next(chosen) else leaf, args)  # noqa: B023
