"""Check whether modules have one structure, so that their weights can be stacked."""

from __future__ import annotations

import operator
import sys
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from itertools import chain
from math import copysign
from operator import attrgetter, itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.weak import TensorWeakRef, WeakIdKeyDictionary

from implicit.parametrized_classes import class_before_parametrizations
from implicit.pure import PLAIN, original

from .places import is_place, place_of


class UnlikeError(TypeError):
    """Modules that cannot be evaluated as one; the message says why."""


class _Nothing:
    """In the place of an attribute that a module does not have."""

    def __repr__(self) -> str:
        return "nothing"


_OWN = nn.Module().__dict__
_hooks = itemgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_shape = attrgetter("shape", "dtype")
_held = itemgetter("_modules", "_parameters", "_buffers")


def check_alike(layers: Sequence[Sequence[nn.Module]]) -> None:
    """`UnlikeError` unless all have equal classes, settings and shapes, and no hooks.

    Args:
        layers: for each layer a module and those within it, as `implicit.pure.own_modules` lists them.
    """
    for number, parts in enumerate(layers):
        if len(parts) != len(layers[0]):
            raise UnlikeError(f"the transforms of layers 0 and {number} have different submodules")
    for column in zip(*layers):
        if not _plainly_alike(column):
            _check_column(column)
    _check_connections(layers)


def _plainly_alike(column: Sequence[nn.Module]) -> bool:
    """Whether the modules, one of each layer, are seen to be alike at once, as most layers made in a loop are."""
    first, facts = column[0], [module.__dict__ for module in column]
    own, names = first.__dict__, first._parameters.keys()
    if len(set(map(type, column))) > 1 or isinstance(first, torch.jit.ScriptModule):
        return False
    if any(map(any, map(_hooks, facts))) or any(each.keys() != own.keys() for each in facts):
        return False
    settings = own.keys() - _OWN.keys() | {"training"}
    if any(each[key] is not own[key] for key in settings for each in facts):
        return False
    if any(each["_buffers"] or each["_parameters"].keys() != names for each in facts):
        return False
    return all(_of_one_form([each["_parameters"][name] for each in facts]) for name in names)


def _of_one_form(tensors: Sequence[Tensor | None]) -> bool:
    return len(set(map(type, tensors))) == 1 and (tensors[0] is None or len(set(map(_shape, tensors))) == 1)


def _check_column(column: Sequence[nn.Module]) -> None:
    """`UnlikeError` unless the modules, one of each layer, are alike."""
    first = column[0]
    made: Any = first.parametrizations if parametrize.is_parametrized(first) else ()
    hidden = {*_OWN, *(f"_{name}" for name in made)}
    nothing = _Nothing()
    settings = {key: value for key, value in first.__dict__.items() if key not in hidden}
    for number, other in enumerate(column):
        facts = other.__dict__
        if isinstance(other, torch.jit.ScriptModule):
            raise UnlikeError(f"a part of layer {number} was compiled by TorchScript, which hides its weights")
        if any(_hooks(facts)):
            raise UnlikeError(f"{type(other).__name__} in layer {number} has hooks: they see one layer at a time")
        if other is first:
            continue
        if type(other) is not type(first):
            _compare(number, "class", *map(class_before_parametrizations, (first, other)))
        if other.training != first.training:
            _compare(number, "training", first.training, other.training)
        for key in {**settings, **facts}.keys() - hidden:
            one, two = (each.get(key, nothing) for each in (settings, facts))
            if one is not two:
                _compare(number, key, one, two)
        for tensors, others in ((first._parameters, other._parameters), (first._buffers, other._buffers)):
            if tensors.keys() != others.keys():
                _compare(number, "tensors", list(tensors), list(others))
            for key, tensor in tensors.items():
                two = others[key]
                if tensor is None or two is None or tensor.shape != two.shape or tensor.dtype != two.dtype:
                    _compare(number, f"{key} of shape", *map(_form, (tensor, two)))
        for key, buffer in first._buffers.items():
            if buffer is not None and not buffer.is_floating_point():
                _compare(number, key, buffer, other._buffers[key])


_connected: WeakKeyDictionary[nn.Module, list[int | str]] = WeakKeyDictionary()
"""By the first module, the modules and tensors of layers whose connections have been compared, and all names."""


def _check_connections(layers: Sequence[Sequence[nn.Module]]) -> None:
    every = list(chain.from_iterable(layers))
    held = list(chain.from_iterable(_held(part.__dict__) for part in every))
    objects = chain(every, chain.from_iterable(map(dict.values, held)))
    things = [*map(id, objects), *map(len, held), *chain.from_iterable(held)]
    if _connected.get(layers[0][0]) == things:
        return
    first = _connections(layers[0])
    for number, parts in enumerate(layers):
        for part, one, other in zip(parts, first, _connections(parts), strict=True):
            if one != other:
                raise UnlikeError(
                    f"the transforms of layers 0 and {number} are put together differently: the submodules and tensors "
                    f"of their {type(part).__name__} have other names, another order, or are shared otherwise"
                )
    _connected[layers[0][0]] = things


def _connections(parts: Sequence[nn.Module]) -> list[Any]:
    """For each module, its submodules and tensors by name and order of discovery."""
    places = {id(part): place for place, part in enumerate(parts)}
    tensors: dict[int, int] = {}
    return [
        (
            [(name, places.get(id(original(child)))) for name, child in part._modules.items() if child is not None],
            [
                (name, tensors.setdefault(id(tensor), len(tensors)))
                for name, tensor in (*part._parameters.items(), *part._buffers.items())
            ],
        )
        for part in parts
    ]


_compared: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Another tensor to which a tensor was found equal, with the versions and addresses of both."""


def _waits(tensor: Tensor) -> bool:
    """Whether reading a value waits for a device."""
    return tensor.device.type != "cpu"


def _equal(one: Tensor, other: Tensor) -> bool:
    if not _waits(one) or one.is_inference() or other.is_inference():
        return torch.equal(one, other)
    versions = one._version, other._version, one.data_ptr(), other.data_ptr()
    known, then = _compared.get(other, (None, None))
    if known is not None and known() is one and then == versions:
        return True
    if equal := torch.equal(one, other):
        _compared[other] = TensorWeakRef(one), versions
    return equal


def _form(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tuple(tensor.shape)} and {tensor.dtype}"


def _compare(number: int, what: str, one: Any, other: Any) -> None:
    try:
        same = _same(one, other)
    except Exception:  # what contains itself, or cannot be compared
        same = False
    if not same:
        one, other = _shown(one), _shown(other)
        found = f"{one} in one and {other} in the other"
        if one == other:
            found = f"{one} in both, but not the same object, nor do they hold the same"
        raise UnlikeError(f"the transforms of layers 0 and {number} differ: {what} {found}")


def _shown(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # it is too deep, say
        return f"an object of {type(value).__name__}"


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if _shape(one) != _shape(other) or one.requires_grad or other.requires_grad or one.layout != torch.strided:
            return False
        return one.is_meta or _equal(one, other)
    kind = type(one)
    if kind is not type(other) or issubclass(kind, nn.Module):
        return False
    if kind in PLAIN:
        return bool(one == other) and (kind is not float or copysign(1, one) == copysign(1, other))
    if kind is partial:
        return _same((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    if issubclass(kind, _CONTAINERS):
        return _same_contents(one, other) and (kind in _CONTAINERS or _same(_attributes(one), _attributes(other)))
    if is_place(one):  # a dataclass, which may leave some of it out of the comparison, or a namespace
        return _same(_attributes(one), _attributes(other))
    try:
        if not bool(one == other):
            return False
        kept, others = _attributes(one), _attributes(other)
    except Exception:  # settings whose comparison gives no truth value count as different
        return False
    # what Python's own classes leave out, as paths do their texts, makes no difference, nor what has been recorded
    return kind.__module__.partition(".")[0] in _TRUSTED or _same(kept, others)


_TRUSTED = sys.stdlib_module_names - {"__main__"} | {"solvers"}
"""Packages whose classes are alike where they say so."""
_CONTAINERS = (list, tuple, deque, dict, set, frozenset, np.ndarray)


def _same_contents(one: Any, other: Any) -> bool:
    """Whether the containers hold the same; their own comparison would compare tensors by value."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, (set, frozenset)):
        return bool(one == other) and Counter(map(type, one)) == Counter(map(type, other))
    if len(one) != len(other) or not all(map(_same, one, other)):
        return False
    if isinstance(one, dict):
        factories = (getattr(each, "default_factory", None) for each in (one, other))
        return operator.is_(*factories) and all(map(_same, one.values(), other.values()))
    return not isinstance(one, deque) or one.maxlen == other.maxlen


def _attributes(value: Any) -> dict[str, Any]:
    return dict(place_of(value))
