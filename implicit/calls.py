"""What the implicit layers of a model are called with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.random import fork_rng

from solvers import State
from solvers.problem import select
from solvers.state import Layout, autocast_dtype, tree_map

from .layer import Layer
from .parametrized import one_weight
from .recording import layer_name, unrecorded


class Call(NamedTuple):
    """One call of a layer, its tensors copies without a graph."""

    name: str
    """The layer's, as in a `record`."""
    layer: Any
    """The `Layer` itself."""
    inputs: tuple[Any, ...]
    z0: State | None
    """The warm start, where one was given."""
    chosen: Mapping[str, Any] = {}
    """Attributes of the layer, a number of steps, that were given at this call in place of its own."""
    autocast: torch.dtype | None = None
    """That of autocast, where the call was under it."""

    @property
    def start(self) -> State:
        """The first iterate."""
        return self.layer.start(self.inputs, self.z0)

    def apart(self) -> Call:
        """The same call of a copy of the layer; `TypeError` where it cannot be copied."""
        try:
            layer = copy.deepcopy(self.layer)
        except Exception as error:  # whatever a module of the user's raises
            raise TypeError(
                f"{self.name or type(self.layer.cell).__name__} cannot be copied, and only a copy is looked at: {error}"
            ) from error
        for name, value in self.chosen.items():
            setattr(layer, name, value)
        inputs, z0 = detached((self.inputs, self.z0))
        return self._replace(layer=layer, inputs=inputs, z0=z0)

    def conditions(self) -> AbstractContextManager[Any]:
        """Autocast as in the call."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(Layout(self.start).device.type, dtype=self.autocast)

    def of_rows(self, count: int) -> Call:
        """The same for at most `count` rows, spread over the batch."""
        layout = Layout(self.start)
        if layout.batch <= count:
            return self
        rows = torch.linspace(0, layout.batch - 1, count, device=layout.device).round().long()
        own = self._places()
        inputs = tuple(select(value, rows) if place in own else value for place, value in enumerate(self.inputs))
        layer = copy.copy(self.layer)
        for name, value in self.chosen.items():
            setattr(layer, name, select(value, rows))  # a number for each row
        return self._replace(layer=layer, inputs=inputs, z0=select(self.z0, rows))

    def by_row(self) -> tuple[Callable[..., State], tuple[Any, ...]]:
        """The cell as a function of the state and of those inputs that have the batch in dim 0, and these."""
        cell, inputs, places = self.layer.cell, self.inputs, self._places()

        def f(z: State, *own: Any) -> State:
            filled = list(inputs)
            for place, value in zip(places, own, strict=True):
                filled[place] = value
            image: State = cell(z, *filled)
            return image

        return f, tuple(inputs[place] for place in places)

    def _places(self) -> list[int]:
        """Which inputs have the batch in dim 0: all that may, of a layer that compacts; else those with which f works.

        A tensor that rows share may be as long as the batch.
        """
        batch, start = Layout(self.start).batch, self.start
        likely = [place for place, value in enumerate(self.inputs) if _by_row(value, batch)]
        if self.layer.drops_rows or not batch or len(likely) < 2:
            return likely
        rows = torch.zeros(batch + 1, dtype=torch.long, device=Layout(start).device)
        for places in (likely, likely[:1]):
            inputs = [select(value, rows) if place in places else value for place, value in enumerate(self.inputs)]
            try:
                with torch.no_grad(), one_weight(self.layer.cell):
                    Layout(start).check(self.layer.cell(select(start, rows), *inputs), batch + 1)
            except (RuntimeError, ValueError, IndexError):
                continue
            return places
        return []


def _by_row(value: Any, batch: int) -> bool:
    """Whether it is a tensor, or a tuple of them, with the batch in dim 0; else it is shared between the rows."""
    if isinstance(value, tuple):
        return bool(value) and all(_by_row(part, batch) for part in value)
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch


_listeners: ContextVar[tuple[list[Call], ...]] = ContextVar("implicit_calls", default=())


@contextmanager
def layer_calls(model: nn.Module) -> Iterator[list[Call]]:
    """The calls of every implicit layer in the model within the block, in their order; no cost outside it."""
    heard: list[Call] = []
    calls: list[Call] = []
    token = _listeners.set((*_listeners.get(), heard))
    try:
        yield calls
    finally:
        _listeners.reset(token)
        names = {id(module): name for name, module in model.named_modules()}
        calls += [call._replace(name=names[id(call.layer)] or call.name) for call in heard if id(call.layer) in names]


def note_call(layer: Layer, inputs: tuple[Any, ...], z0: State | None, chosen: Mapping[str, Any]) -> None:
    """Tell whoever listens that the layer is called."""
    listeners = _listeners.get()
    if not listeners:
        return
    autocast = autocast_dtype(Layout(layer.start(inputs, z0)).device)
    given = inputs, z0, dict(chosen)
    inputs, z0, chosen = tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, given)
    for heard in listeners:
        heard.append(Call(layer_name(layer, layer.title), layer, inputs, z0, chosen, autocast))


def first_of_each(calls: list[Call]) -> list[Call]:
    """The first call of each layer."""
    return list({call.name: call for call in reversed(calls)}.values())[::-1]


@contextmanager
def aside(model: nn.Module) -> Iterator[None]:
    """For a look that must not be felt: no warnings, no records, gradients where they are asked for whatever the mode
    around, and random numbers that go on afterwards as if it had not been, on the CPU and the model's first GPU.
    """
    devices = [parameter.device for parameter in model.parameters() if parameter.is_cuda]
    with warnings.catch_warnings(), fork_rng(devices[:1]), torch.inference_mode(False), unrecorded():
        warnings.simplefilter("ignore")
        yield


def detached(values: Any) -> Any:
    """Nested tuples with every tensor without its graph; one of inference mode is copied, out of it."""

    def alone(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.clone() if value.is_inference() and not torch.is_inference_mode_enabled() else value.detach()

    return tree_map(alone, values)
