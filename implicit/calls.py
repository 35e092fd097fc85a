"""What the implicit layers of a model are called with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.random import fork_rng

from solvers import State
from solvers.problem import mapped, select
from solvers.state import Layout

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

    @property
    def start(self) -> State:
        """The first iterate."""
        return self.layer._start(self.inputs, self.z0)

    def of_rows(self, count: int) -> Call:
        """The same for at most `count` rows, spread over the batch."""
        layout = Layout(self.start)
        if layout.batch <= count:
            return self
        rows = torch.linspace(0, layout.batch - 1, count, device=layout.device).round().long()
        inputs = tuple(select(value, rows) if _by_row(value, layout.batch) else value for value in self.inputs)
        return self._replace(inputs=inputs, z0=select(self.z0, rows))

    def by_row(self) -> tuple[Callable[..., State], tuple[Any, ...]]:
        """The cell as a function of the state and of those inputs that have the batch in dim 0, and these."""
        batch, cell, inputs = Layout(self.start).batch, self.layer.cell, self.inputs
        places = [place for place, value in enumerate(inputs) if _by_row(value, batch)]

        def f(z: State, *own: Any) -> State:
            filled = list(inputs)
            for place, value in zip(places, own, strict=True):
                filled[place] = value
            image: State = cell(z, *filled)
            return image

        return f, tuple(inputs[place] for place in places)


def _by_row(value: Any, batch: int) -> bool:
    """Whether it is a tensor, or a tuple of them, with the batch in dim 0; else it is shared between the rows."""
    if isinstance(value, tuple):
        return bool(value) and all(_by_row(part, batch) for part in value)
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch


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
def aside(model: nn.Module) -> Iterator[None]:
    """For a look that must not be felt: no warnings, gradients where they are asked for whatever the mode around, and
    random numbers that go on afterwards as if it had not been, on the CPU and the model's first GPU.
    """
    devices = [parameter.device for parameter in model.parameters() if parameter.is_cuda]
    with warnings.catch_warnings(), fork_rng(devices[:1]), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        yield


def detached(values: Any) -> Any:
    """Nested tuples with every tensor without its graph; one of inference mode is copied, out of it."""

    def alone(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.clone() if value.is_inference() and not torch.is_inference_mode_enabled() else value.detach()

    return mapped(values, alone)
