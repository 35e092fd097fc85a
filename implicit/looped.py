"""A fixed number of steps of one cell, as recurrent-depth and looped models take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from solvers import Eager, Loop, Solution, State
from solvers.loops.plain import plain_steps
from solvers.problem import IN_PLACE, prepare, unshared
from solvers.state import Layout, autocast_dtype, tree_leaves, tree_map, usable, without_autocast

from .calls import note_call
from .depths import depths, is_count
from .functorch import transformed
from .layer import Layer, Z
from .logs import current_logs, layer_name
from .loop_trace import LoopTrace
from .parametrized import one_weight
from .reports import Reports
from .sources import forward_source
from .suitability import unsuitable


class Looped(Layer[Z]):
    """A layer that takes a fixed number of plain steps, `z ← cell(z, *inputs)`, and returns the last iterate.

    Value and derivatives are those of a hand-written loop whose first steps are under `torch.no_grad()`, so memory
    grows with `tracked` only. Prefer it where depth is a budget: recurrent-depth and looped models, which are trained
    at some depths and run at others. Prefer its limit, `Equilibrium(looped.cell)`, where the steps settle: it stops at
    a tolerance, its gradient is exact, and its memory is that of one step. Sources:
    Giannou et al., "Looped Transformers as Programmable Computers", ICML 2023; Geiping et al., "Scaling up Test-Time
    Compute with Latent Reasoning: A Recurrent Depth Approach", 2025.

    There is no tolerance and no warning. In `record` and `solve` a row's status is MAX_STEPS, or says that it was not
    finite or grew out of bounds. Its residual is that of the value, for which the cell is evaluated once more without
    disturbing random numbers and buffers. Unrecorded, nothing is measured, and the only wait for a GPU is to read a
    tensor of steps that lies on it. Under transforms of torch.func nothing is recorded.

    Args:
        cell: module `(z, *inputs) → z`, (batch, …), of the same shape; it may draw random numbers and keep batch
            statistics. Weights under `torch.nn.utils.parametrizations` are computed once per call.
        steps: how many, at least 1.
        tracked: how many of the last steps are differentiated, from 1 to `steps`; None: all.
        initial: `initial(*inputs)` makes the first iterate; None: zeros like the first input.
        loop: what runs the untracked steps, such as `Captured()`, in stretches of its `check_every`. Under any loop but
            `Eager`, a cell that draws random numbers may draw different ones. Calls with a depth for each row, recorded
            calls, and cells with batch statistics or dropout in training take their steps one by one.
    """

    def __init__(
        self,
        cell: nn.Module,
        *,
        steps: int,
        tracked: int | None = None,
        initial: Callable[..., Z] | None = None,
        loop: Loop = Eager(),
    ) -> None:
        super().__init__(cell, initial)
        if not isinstance(loop, Loop):
            raise TypeError(f"Looped: loop={loop!r} is not a loop: pass an object such as Eager() or Captured()")
        self.loop = loop
        if not is_count(steps):
            raise ValueError(f"Looped: steps={steps!r} must be an integer of at least 1")
        self.steps, self.tracked = steps, tracked
        if tracked is not None and self._tracked(int(steps)) != tracked:
            raise ValueError(
                f"Looped: tracked={tracked} is more than steps={steps}: pass at most {steps}, or None for all steps"
            )

    def forward(self, *inputs: Any, z0: Z | None = None, steps: int | Tensor | None = None, **keywords: Any) -> Z:
        """The iterate after the given number of steps.

        Args:
            inputs, keywords: of the cell, by position and by name.
            z0: the start, in place of `initial`.
            steps: overrides the layer's; a (batch,) tensor of integers gives each row its own number, and the
                derivatives of its own last `tracked` steps, or of all if it has fewer. The cell is evaluated as often
                as the deepest row needs, and the others begin later. Rows must then be independent.
        """
        inputs = unshared(self.positional(inputs, keywords))
        note_call(self, inputs, z0, {} if steps is None else {"steps": steps})
        logs = current_logs()
        with one_weight(self.cell):
            if not logs or transformed():
                return self._loop(inputs, z0, steps)
            trace = LoopTrace(self.cell, inputs)
            value = self._loop(inputs, z0, steps, trace)
            name = layer_name(self, self.title)
            Reports(logs, name, self.cell).enter("forward", True, lambda: trace.solution(value))
            return value

    if TYPE_CHECKING:  # a module's call is typed Any
        __call__ = forward

    def solve(
        self, *inputs: Any, z0: Z | None = None, steps: int | Tensor | None = None, **keywords: Any
    ) -> Solution[Z]:
        """The `Solution` for `inputs`: the last iterate, and the residuals on the way to it; no graph."""
        inputs = unshared(self.positional(inputs, keywords))
        with one_weight(self.cell), torch.no_grad():
            trace = LoopTrace(self.cell, inputs)
            return trace.solution(self._loop(inputs, z0, steps, trace))

    def _loop(
        self, inputs: tuple[Any, ...], z0: State | None, steps: int | Tensor | None, trace: LoopTrace | None = None
    ) -> State:
        z = tree_map(usable, self.start(inputs, z0))
        with self.explained(z, z0 is not None):
            layout = Layout(z)
        depth = depths(self.steps if steps is None else steps, layout)
        untracked = depth.most - self._tracked(depth.most)

        def advance(step: int, z: State) -> State:
            image = self._image(layout, z, inputs, first=step == 0, given=z0 is not None)
            if trace is not None:
                trace.see(layout, z, image, depth.waits)
            image = depth.begun(step, image, z)
            # a cell may take gradients inside: its graph must not grow from step to step while we record none
            return image if torch.is_grad_enabled() else tree_map(_without_graph, image)

        if untracked:
            with torch.no_grad():
                moved, taken = tree_map(torch.Tensor.detach, z), 0
                if trace is None and depth.waits is None and self._in_stretches:
                    moved, taken = self._stretches(moved, inputs, untracked, z0 is not None)
                for step in range(taken, untracked):
                    moved = advance(step, moved)
            # forward-mode derivatives pass through no_grad
            z = depth.begun(untracked - 1, tree_map(torch.Tensor.detach, moved), z)
            if autocast_dtype(layout.device) is not None and not torch.compiler.is_compiling():
                # tracked steps must not reuse weights that were cast without a graph
                torch.clear_autocast_cache()
        for step in range(untracked, depth.most):
            z = advance(step, z)
        return z

    @property
    def _in_stretches(self) -> bool:
        """Whether the loop, and not this layer, can run untracked steps."""
        if isinstance(self.loop, Eager) or torch.compiler.is_compiling() or transformed():
            return False
        return not any(unsuitable(self.cell))

    def _stretches(self, z: State, inputs: tuple[Any, ...], most: int, given: bool) -> tuple[State, int]:
        """The iterate after as many whole stretches of the loop as fit in `most` steps, and their number of steps."""
        problem = prepare(self.cell, z, inputs, advice=lambda: self.advice(z, given))
        problem.captures, problem.source = self._captures, forward_source
        layout = problem.layout
        with without_autocast(layout.device):
            flat, taken = plain_steps(problem, self.loop, layout.flatten(z).clone(), most)
        return layout.unflatten(flat), taken

    def _tracked(self, steps: int) -> int:
        """How many of these steps have derivatives."""
        if self.tracked is None:
            return steps
        if not is_count(self.tracked):
            raise ValueError(
                f"Looped: tracked={self.tracked!r} must be an integer of at least 1, or None for all steps; for no "
                "gradient, call it under torch.no_grad()"
            )
        return min(int(self.tracked), steps)

    def _image(self, layout: Layout, z: State, inputs: tuple[Any, ...], first: bool, given: bool) -> State:
        """`cell(z, *inputs)`, checked; an error in the first evaluation says where z came from."""
        if not first:
            return self._checked(layout, self.cell(z, *inputs))
        versions = _versions(z)
        with self.explained(z, given):
            image = self._checked(layout, self.cell(z, *inputs))
        if versions != _versions(z):
            raise ValueError(IN_PLACE)
        return image

    def _checked(self, layout: Layout, output: Any) -> State:
        layout.check(output, layout.batch)
        return output if isinstance(output, Tensor) else layout.of_parts(tree_leaves(output))

    def extra_repr(self) -> str:
        return f"steps={self.steps}, tracked={self.tracked}"


def _without_graph(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def _versions(state: State) -> list[int]:
    """How often the state's tensors have been written to, where that is counted."""
    if torch.compiler.is_compiling():
        return []
    return [tensor._version for tensor in tree_leaves(state) if not tensor.is_inference()]
