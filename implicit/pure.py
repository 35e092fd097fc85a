"""A module as a pure function of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from .parametrized_classes import class_before_parametrizations, parametrized_names

_TENSORS = "_parameters", "_buffers"
_KEPT_IN = {name: type(value) for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set))}
"""Where every module keeps its tensors, submodules and hooks."""
PLAIN = {bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None)}
"""Classes of values that cannot change, and are compared by value."""


@dataclass(frozen=True)
class _Slot:
    """The place of a known tensor."""

    position: int


class Known:
    """Tensors that may have gradients, in order of discovery, each once."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[_Slot, Tensor]] = {}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors found so far."""
        return tuple(tensor for _, tensor in self._slots.values())

    def placed(self, value: Any) -> Any:
        """The place of a tensor that may have gradients, made if it is new; anything else as it is."""
        if self.has_place(value):
            return self._slots.setdefault(id(value), (_Slot(len(self._slots)), value))[0]
        return value

    @staticmethod
    def has_place(value: Any) -> bool:
        """Whether the value is a tensor that may have gradients."""
        return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())

    @staticmethod
    def places(value: Any) -> bool:
        """Whether the value is a place made by `placed`."""
        return isinstance(value, _Slot)

    @staticmethod
    def filling(tensors: Sequence[Tensor]) -> Callable[[Any], Any]:
        """The inverse of `placed`, with these tensors in the places."""
        return lambda value: tensors[value.position] if isinstance(value, _Slot) else value


@dataclass(frozen=True)
class Part:
    """A module as it was, with places for its tensors."""

    module: nn.Module
    kind: type
    """Its class, without parametrizations."""
    kept: dict[str, Any]
    """Its attributes that are plain values, hooks, submodules, and tensors or their places."""
    parametrized: dict[str, Any]
    """Its parametrized weights, by name."""

    @property
    def own(self) -> dict[str, Any]:
        """Its `__dict__` as it was, but for objects, containers and other tensors, which would be kept alive."""
        return self.module.__dict__ | self.kept

    @property
    def now(self) -> dict[str, Any]:
        """Its `__dict__` as it is, but with places for the tensors of then."""
        return self.module.__dict__ | {name: self.kept[name] for name in _TENSORS}


class PureModule:
    """A module whose tensors are passed in: parameters, buffers, and the current values of parametrized weights.

    Their places are kept in `known`. Later changes to its mode, hooks, submodules, numbers and words have no effect.
    Code of torch.compile is replaced by the original module, and parametrizations by their results. Methods that were
    replaced by others bound to the module are bound to its twin. Parts compiled by TorchScript stay as they are, with
    the tensors they have.
    """

    def __init__(self, module: nn.Module, known: Known) -> None:
        self.parts = [_part(part, known.placed) for part in own_modules(module)]
        self.module = module

    @property
    def is_open(self) -> bool:
        """Whether every tensor that is computed, or may have gradients, is passed in."""
        return all(part.kept and all(map(Known.places, part.parametrized.values())) for part in self.parts)

    def twin(self, tensors: Sequence[Tensor]) -> nn.Module:
        """A shallow copy of the module with these tensors in the known ones' places."""
        filled = Known.filling(tensors)
        twins: dict[int, nn.Module] = {}
        for part in self.parts:
            if isinstance(part.module, ScriptModule):
                twins[id(part.module)] = part.module
                continue
            twin: nn.Module = object.__new__(part.kind)
            twins[id(part.module)] = twin
            twin.__dict__.update(
                part.own | {name: {key: filled(value) for key, value in part.kept[name].items()} for name in _TENSORS},
                **{name: filled(value) for name, value in part.parametrized.items()},
            )
        for part in self.parts:
            twin = twins[id(part.module)]
            if twin is part.module:
                continue
            children = part.kept["_modules"].items()
            functions = {name: _moved(value, twins) for name, value in part.module.__dict__.items() if callable(value)}
            twin.__dict__.update(
                functions,
                _modules={
                    name: child if child is None else twins.get(id(original(child)), child) for name, child in children
                },
                _compiled_call_impl=None,
            )
        return twins[id(self.parts[0].module)]


def _moved(value: Any, twins: dict[int, nn.Module]) -> Any:
    """A bound method, or a partial function, with the twins in place of the modules; anything else as it is."""
    if isinstance(value, MethodType):
        return MethodType(value.__func__, twins.get(id(value.__self__), value.__self__))
    if isinstance(value, partial):
        args = (twins.get(id(each), each) for each in value.args)
        keywords = {name: twins.get(id(each), each) for name, each in value.keywords.items()}
        return partial(_moved(value.func, twins), *args, **keywords)
    return value


def every_module(module: nn.Module) -> list[nn.Module]:
    """What `module.modules()` gives, faster: that takes as long as a small cell."""
    queue, found = [module], {id(module)}
    for each in queue:
        for child in each._modules.values():
            if child is not None and id(child) not in found:
                found.add(id(child))
                queue.append(child)
    return queue


def own_modules(module: nn.Module) -> list[nn.Module]:
    """The module and its submodules, except for parametrizations and the parts of TorchScript modules."""
    queue = [original(module)]
    found = {id(queue[0])}
    for module in queue:
        if not module._modules or isinstance(module, ScriptModule):
            continue
        for name, child in module._modules.items():
            if child is None or (name == "parametrizations" and parametrize.is_parametrized(module)):
                continue
            child = original(child)
            if id(child) not in found:
                found.add(id(child))
                queue.append(child)
    return queue


def own_tensors(parts: Sequence[nn.Module]) -> list[Tensor]:
    """The tensors that may have gradients of these `own_modules`, in the order of a `PureModule`'s places."""
    return [tensor for (tensor,) in tensors_in_place([parts])]


def tensors_in_place(layers: Sequence[Sequence[nn.Module]]) -> Iterator[list[Tensor]]:
    """For each of these tensors of the first of several `own_modules` of one structure, those in its place of all."""
    found = set()
    for place, part in enumerate(layers[0]):
        for held in _TENSORS:
            for name, value in getattr(part, held).items():
                if id(value) not in found and Known.has_place(value):
                    found.add(id(value))
                    yield [getattr(parts[place], held)[name] for parts in layers]
        for name in parametrized_names(part):
            column = [getattr(parts[place], name) for parts in layers]
            if Known.has_place(column[0]):
                yield column


def original(module: nn.Module) -> nn.Module:
    """The module, without the wrapper of torch.compile, whose code has no second derivatives."""
    if isinstance(module, ScriptModule):
        return module
    found = module._modules.get("_orig_mod")
    return module if found is None else found


def _part(module: nn.Module, placed: Callable[[Any], Any]) -> Part:
    if isinstance(module, ScriptModule):
        return Part(module, type(module), {}, {})  # it hides its tensors
    own = module.__dict__
    kept = {name: value for name, value in own.items() if type(value) in PLAIN}
    kept |= {name: kind(own[name]) if own[name] else kind() for name, kind in _KEPT_IN.items()}
    return Part(
        module,
        class_before_parametrizations(module),
        kept | {name: {key: placed(value) for key, value in own[name].items()} for name in _TENSORS},
        {name: placed(getattr(module, name)) for name in parametrized_names(module)},
    )


def is_ready(parts: Sequence[nn.Module]) -> bool:
    """Whether all parameters and buffers of these modules have been made."""
    return not any(
        is_lazy(tensor) for part in parts for name in _TENSORS for tensor in vars(part).get(name, {}).values()
    )


def obstacle(parts: Sequence[nn.Module]) -> str | None:
    """Why not every tensor of these `own_modules` that is computed, or may have gradients, can be passed in."""
    for part in parts:
        if isinstance(part, ScriptModule):
            return f"its part {part.original_name} is compiled by TorchScript, which hides its tensors"
        for name in parametrized_names(part):
            if not Known.has_place(getattr(part, name)):
                return f"its parametrized {name} is not of floating point"
    return None
