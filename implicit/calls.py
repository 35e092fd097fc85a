"""What the implicit layers of a model are called with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.random import fork_rng

from solvers import State
from solvers.problem import mapped, select

from .equilibrium import Equilibrium
from .recording import module_names


class Call(NamedTuple):
    """One call of a layer, its tensors detached."""

    name: str
    """The layer's, as in a `record`."""
    layer: Equilibrium
    inputs: tuple[Any, ...]
    z0: State | None
    """The warm start, where one was given."""

    def batch(self) -> int:
        """Rows of the state."""
        start = self.layer._start(self.inputs, self.z0)
        return len(start if isinstance(start, Tensor) else start[0])

    def of_rows(self, count: int) -> Call:
        """The same for at most `count` rows, spread over the batch; all where an input is shared between rows."""
        batch = self.batch()
        tensors = [value for value in self.inputs if isinstance(value, Tensor)]
        if batch <= count or not all(value.ndim and len(value) == batch for value in tensors):
            return self
        device = tensors[0].device if tensors else None
        rows = torch.linspace(0, batch - 1, count, device=device).round().long()
        return self._replace(inputs=select(self.inputs, rows), z0=select(self.z0, rows))


@contextmanager
def layer_calls(model: nn.Module) -> Iterator[list[Call]]:
    """The calls of every `Equilibrium` in the model within the block, in their order; no cost outside it."""
    calls: list[Call] = []
    names = module_names(model)

    def note(layer: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        assert isinstance(layer, Equilibrium)
        inputs, z0 = detached((inputs, options.get("z0")))
        calls.append(Call(names.get(id(layer), layer.title), layer, inputs, z0))

    layers = (module for module in model.modules() if isinstance(module, Equilibrium))
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def first_of_each(calls: list[Call]) -> list[Call]:
    """The first call of each layer."""
    return list({call.name: call for call in reversed(calls)}.values())[::-1]


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """After the block the random numbers go on as if it had not been, on the CPU and the model's first GPU."""
    devices = [parameter.device for parameter in model.parameters() if parameter.is_cuda]
    with fork_rng(devices[:1]):
        yield


def detached(values: Any) -> Any:
    """Nested tuples with every tensor without its graph."""
    return mapped(values, lambda value: value.detach() if isinstance(value, Tensor) else value)
