"""What a loop of a fixed number of steps did: the residual of each iterate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solvers import Euclidean, Picard, Solution, State
from solvers.judge import judge
from solvers.norms import Measure
from solvers.problem import prepare
from solvers.rows import Floats, Rows, Rule
from solvers.solution import Outcome
from solvers.solve import uncompiled
from solvers.state import Layout, tree_map, without_autocast

from .calls import aside


class LoopTrace:
    """The norms of each step, on the device until they are read."""

    def __init__(self, cell: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.cell, self.inputs = cell, inputs
        self.norms: list[Tensor] = []
        self.layout: Layout
        self.waits: Tensor | None = None

    @uncompiled
    @torch.no_grad()
    def see(self, layout: Layout, z: State, image: State, waits: Tensor | None) -> None:
        """Record a step from z to its image; each row waits `waits` steps before its first."""
        self.layout, self.waits = layout, waits
        z, image = (layout.flatten(tree_map(torch.Tensor.detach, state)) for state in (z, image))
        with without_autocast(layout.device):
            self.norms.append(Measure(Euclidean(), 0.0, 0.0).difference(image, z, robust=True)[1].double())

    @uncompiled
    def solution(self, value: State) -> Solution[Any]:
        """The `Solution` with this value, at which the cell is evaluated once more."""
        layout = self.layout
        value = tree_map(torch.Tensor.detach, value)
        problem = prepare(self.cell, tree_map(lambda part: part.to(layout.dtype), value), self.inputs)
        with _untouched(self.cell), torch.no_grad():
            self.see(layout, value, self.cell(value, *self.inputs), self.waits)
        norms = torch.stack(self.norms).cpu().numpy()  # (steps + 1, 2, batch)
        steps = np.full(layout.batch, len(norms) - 1)
        if self.waits is not None:
            waits = self.waits.cpu().numpy()
            norms, steps = _shifted(norms, waits), steps - waits
        rule = Rule(0.0, 0.0, problem.rounding, min_steps=len(norms) + 1)  # no row stops, and none converges
        rows = judge(rule, Rows.fresh(steps + 1, len(norms)), 1, norms.reshape(2 * len(norms), layout.batch)).rows
        at_value = np.take_along_axis(norms, steps[None, None], axis=0)[0]
        rows = rows._replace(steps=steps, best=at_value[0], best_scale=at_value[1])
        norms[steps, :, np.arange(layout.batch)] = np.nan  # a trace has one line per step
        lines = norms[:-1].reshape(2 * len(norms) - 2, layout.batch)
        outcome = Outcome(layout.flatten(value), rows, lines, rule, False)
        found = outcome.solution(problem, Picard())
        unmet = torch.zeros_like(found.converged)  # there is no tolerance to miss
        return replace(found, value=tree_map(Tensor.clone, value), fixed=True, floored=unmet)


def _shifted(norms: Floats, waits: Any) -> Floats:
    """The norms of each row from its own first step on, NaN after its last."""
    lines = np.arange(len(norms))[:, None] + waits
    found = np.take_along_axis(norms, np.minimum(lines, len(norms) - 1)[:, None], axis=0)
    return np.where((lines < len(norms))[:, None], found, np.nan)


@contextmanager
def _untouched(cell: nn.Module) -> Iterator[None]:
    """Evaluations in the block leave the random state and the buffers as they were."""
    kept = [(buffer, buffer.clone()) for buffer in cell.buffers()]
    with aside(cell):
        yield
        for buffer, copy in kept:
            if not torch.equal(buffer, copy):
                buffer.data.copy_(copy)  # a backward pass that needs the buffer finds it unchanged
