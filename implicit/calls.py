"""The calls of a model's implicit layers, with their inputs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.random import fork_rng

from solvers import State
from solvers.problem import prepare
from solvers.state import Layout, autocast_dtype, select, tree_map

from .compiled import uncompiled_cells
from .copies import copied, untouched
from .draws import normal
from .few_rows import AmongOthers, few_rows
from .layer import Layer
from .logs import unrecorded
from .parametrized import one_weight


class Call(NamedTuple):
    """One call of a layer; as `layer_calls` records it, its tensors are copies without a graph."""

    name: str
    """The layer's name, as in a `record`."""
    layer: Any
    """The `Layer` itself."""
    inputs: tuple[Any, ...]
    z0: State | None
    """The warm start, where one was given."""
    chosen: Mapping[str, Any] = {}
    """Attributes of the layer that this call overrides, such as a number of steps."""
    autocast: torch.dtype | None = None
    """The dtype of autocast, if the call ran under it."""

    @property
    def start(self) -> State:
        """The first iterate."""
        return self.layer.start(self.inputs, self.z0)

    def apart(self) -> Call:
        """The same call on a copy of the layer."""
        layer = copied(self.layer)
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
        """The same call for at most `count` rows, spread over the batch; for all rows if the cell needs them all."""
        problem = prepare(self.layer.cell, self.start, self.inputs)
        layout = problem.layout
        if layout.batch <= count:
            return self
        rows = torch.linspace(0, layout.batch - 1, count, device=layout.device).round().long()
        start = layout.flatten(self.start)
        with torch.no_grad(), one_weight(self.layer.cell):
            found = few_rows(problem, start + normal(start.shape, start), rows)  # at zeros, a mask of z would not show
        if isinstance(found.f, AmongOthers):
            return self
        layer, steps = copy.copy(self.layer), {"max_steps": getattr(self.layer, "max_steps", None), **self.chosen}
        chosen = {name: value[rows] for name, value in steps.items() if isinstance(value, Tensor)}  # one for each row
        for name, value in {**self.chosen, **chosen}.items():
            setattr(layer, name, value)
        few = self._replace(layer=layer, inputs=found.args, z0=select(self.z0, rows), chosen={**self.chosen, **chosen})
        return few if Layout(few.start).batch == count else self  # initial= may fix the batch size


_listeners: ContextVar[tuple[list[Call], ...]] = ContextVar("implicit_calls", default=())


@contextmanager
def layer_calls(model: nn.Module) -> Iterator[list[Call]]:
    """Record the calls of the model's implicit layers within the block, in order; outside it, this costs nothing."""
    heard: list[Call] = []
    calls: list[Call] = []
    token = _listeners.set((*_listeners.get(), heard))
    try:
        yield calls
    finally:
        _listeners.reset(token)
        names = {id(module): name for name, module in model.named_modules()}
        calls += [call._replace(name=names[id(call.layer)] or call.name) for call in heard if id(call.layer) in names]


def note_call(layer: Layer[Any], inputs: tuple[Any, ...], z0: State | None, chosen: Mapping[str, Any]) -> None:
    """Record a call of the layer for every open `layer_calls` block."""
    listeners = _listeners.get()
    if not listeners:
        return
    autocast = autocast_dtype(Layout(layer.start(inputs, z0)).device)
    given = inputs, z0, dict(chosen)
    inputs, z0, chosen = tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, given)
    for heard in listeners:
        heard.append(Call(layer.title, layer, inputs, z0, chosen, autocast))


def first_of_each(calls: list[Call]) -> list[Call]:
    """The first call of each layer."""
    return list({call.name: call for call in reversed(calls)}.values())[::-1]


@contextmanager
def aside(model: nn.Module) -> Iterator[None]:
    """Run the block without side effects: no warnings, no records, buffers and random state restored afterwards.

    Gradients are available whatever the surrounding mode, and to any order, since compiled cells run uncompiled. The
    random state is restored on the CPU and on the model's first GPU.
    """
    devices = [parameter.device for parameter in model.parameters() if parameter.is_cuda]
    with ExitStack() as stack:
        for each in (
            warnings.catch_warnings(),
            fork_rng(devices[:1]),
            torch.inference_mode(False),
            unrecorded(),
            untouched(model),
            uncompiled_cells(),
        ):
            stack.enter_context(each)
        warnings.simplefilter("ignore")
        yield


def detached(values: Any) -> Any:
    """Nested containers with every tensor detached; outside inference mode, inference tensors are cloned."""

    def alone(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.clone() if value.is_inference() and not torch.is_inference_mode_enabled() else value.detach()

    return tree_map(alone, values)
