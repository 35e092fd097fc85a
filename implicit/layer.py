"""What layers built on a cell share: the cell, the start, and a name."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Generic

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from solvers import Solution, State
from solvers.loops.captures import Captures
from solvers.problem import advise, unshared
from solvers.state import tree_leaves

from .split_cell import SplitCell

Z = TypeVar("Z", default=Tensor)
"""The type of the state: what `initial` makes, else a tensor."""


class Layer(nn.Module, ABC, Generic[Z]):
    """A module around a cell `(z, *inputs) → z`, that starts at `initial(*inputs)` or at zeros like the first input."""

    def __init__(self, cell: nn.Module, initial: Callable[..., Z] | None) -> None:
        super().__init__()
        if not isinstance(cell, nn.Module):
            raise TypeError(f"cell is a {type(cell).__name__}: pass an nn.Module, or use fixed_point for a function")
        if initial is not None and not callable(initial):
            raise TypeError(
                f"{type(self).__name__}: initial is a {type(initial).__name__}: pass a function of the inputs that "
                "makes the first state, or pass a fixed one as z0= at each call"
            )
        self.cell, self.initial = cell, initial
        self._captures = Captures()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        before = self._kinds()
        super()._apply(fn, recurse)
        if self._kinds() != before:  # recordings would keep the memory of the old parameters, and their own
            self._captures = Captures()
        return self

    def _kinds(self) -> list[Any]:
        return [(each.device, each.dtype) for each in chain(self.parameters(), self.buffers())]

    @abstractmethod
    def solve(self, *inputs: Any, z0: Z | None = None) -> Solution[Z]:
        """The `Solution` for `inputs`, no graph."""

    @property
    def title(self) -> str:
        """The layer's name in records if it has no place in a model."""
        return f"{type(self).__name__}({type(self.cell).__name__})"

    def advice(self, start: State, given: bool) -> str:
        """Where the start comes from, to explain an error in the first evaluation; `given`: it is the caller's z0."""
        parts = [part for part in tree_leaves(start) if isinstance(part, Tensor)]
        kind = "shape " if isinstance(start, Tensor) else f"a {type(start).__name__} of shapes "
        what = (
            f"{kind}{', '.join(str(tuple(part.shape)) for part in parts)}, {parts[0].dtype}" if parts else repr(start)
        )
        if given or self.initial is not None:
            return (
                f"{self.title}: z starts at {'z0=' if given else 'what initial= returned'}, {what}: the cell must "
                "take such a state and return another of the same kind and shape"
            )
        return (
            f"{self.title}: z starts as zeros like the first input, {what}: pass initial=, a function of the inputs "
            "that makes the first state, if the cell needs another one"
        )

    @contextmanager
    def explained(self, start: State, given: bool) -> Iterator[None]:
        """Append the advice to an error within."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, torch.OutOfMemoryError):
                advise(error, self.advice(start, given))
            raise

    def positional(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, ...]:
        """All inputs by position; those by name take the places that the cell's `forward` gives them."""
        if not keywords:
            return inputs
        cell = self.cell.module if isinstance(self.cell, nn.DataParallel) else self.cell
        forward = getattr(cell, "_orig_mod", cell).forward
        try:
            bound = inspect.signature(forward).bind(None, *inputs, **keywords)
        except TypeError as error:
            raise TypeError(f"{self.title}: {error}; its forward is {inspect.signature(forward)}") from None
        parameters = list(bound.signature.parameters.values())
        last = max(place for place, parameter in enumerate(parameters) if parameter.name in bound.arguments)
        for parameter in parameters[:last]:  # those before it must be present
            bound.arguments.setdefault(parameter.name, parameter.default)
        if bound.kwargs:
            raise TypeError(
                f"{self.title}: {', '.join(bound.kwargs)} is keyword-only: let the cell's forward take it by position"
            )
        return bound.args[1:]

    def start(self, inputs: tuple[Any, ...], z0: State | None) -> State:
        """The first iterate: the warm start, if there is one."""
        if z0 is not None:
            return z0
        inputs = unshared(inputs)
        if self.initial is not None:
            return self.initial(*inputs)
        if isinstance(self.cell, SplitCell):
            return torch.zeros_like(self.cell.shift(*inputs))
        if not inputs or not isinstance(inputs[0], Tensor):
            raise TypeError(
                "the default start is zeros like the first input, which is not a tensor: pass initial= or z0="
            )
        if not inputs[0].is_floating_point():
            raise TypeError(
                f"{self.title}: z starts as zeros like the first input, which has dtype {inputs[0].dtype}, but a state "
                "needs real floating-point numbers: pass initial=, a function of the inputs that makes the first state"
            )
        return torch.zeros_like(inputs[0])
