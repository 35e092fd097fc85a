"""What modules that are evaluated as one keep on themselves: updates would not reach each layer's own."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from implicit.functorch import version, wrapped
from implicit.pure import own_modules

from .gather import unread
from .likeness import UnlikeError

_CONTAINERS = {dict, list, set, OrderedDict, defaultdict, deque}
_OWN = nn.Module().__dict__
_updating: WeakSet[nn.Module] = WeakSet()
"""Modules that were seen to update a buffer."""


class _Copy(NamedTuple):
    part: nn.Module
    """The one that reads it, as it was before evaluations."""
    owner: dict[str, Any]
    """The buffers, or attributes, of its twin."""
    name: str
    original: Tensor | None
    copy: Tensor | None
    version: int

    @classmethod
    def of(cls, part: nn.Module, owner: dict[str, Any], name: str) -> _Copy:
        original = owner[name]
        owner[name] = copy = None if original is None else original.clone()
        return cls(part, owner, name, original, copy, version(copy))

    def kept(self, compared: bool, replaceable: bool) -> bool:
        """Whether it is unchanged, and still there; updates of its `.data` are found only if it is compared."""
        if version(self.copy) != self.version or not (replaceable or self.owner.get(self.name) is self.copy):
            return False
        if not compared or self.copy is None or self.original is None or unread(self.copy):
            return True  # vmap refuses the `.data` of a batch
        return torch.equal(self.copy, self.original)


class OwnState:
    """Buffers in training, such as masks, and tensors that are attributes: evaluations as one may only read them.

    A change is an `UnlikeError`; a module that changed a buffer is refused at once from then on. Containers are copied,
    so that nothing of an evaluation as one stays in them.

    Args:
        parts: a module and those within it, the first of those evaluated as one.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self._parts = parts
        self._training = any(part.training for part in parts)
        self._buffers, self._tensors, self._containers = [], [], []
        self._compared = False
        for place, part in enumerate(parts):
            if part.training:
                self._buffers += [(place, name) for name in part._buffers]
            for name in part.__dict__.keys() - _OWN.keys():
                value = part.__dict__[name]
                if isinstance(value, Tensor):
                    self._tensors.append((place, name))
                elif type(value) in _CONTAINERS:
                    self._containers.append((place, name))
        self._refuse()

    def _refuse(self) -> None:
        memories = {_memory(self._parts[place]._buffers[name]) for place, name in self._buffers} - {None}
        for place, _ in self._buffers:
            part = self._parts[place]
            if part in _updating or (isinstance(part, _NormBase) and part.running_mean is not None):
                raise _refusal(part, "updates its buffers")
        for place, name in self._tensors:
            part = self._parts[place]
            if _memory(part.__dict__[name]) in memories:
                raise _refusal(part, f"has an attribute, {name}, in the memory of a buffer")

    @contextmanager
    def apart(self, twin: nn.Module) -> Iterator[None]:
        """An evaluation of the module's twin, which gets copies."""
        if not (self._buffers or self._tensors or self._containers or self._training):
            yield
            return
        if self._buffers and torch.is_inference_mode_enabled():
            raise UnlikeError("in inference mode, updates of buffers are not counted: call eval(), or use no_grad()")
        twins = own_modules(twin)
        for place, name in self._containers:
            twins[place].__dict__[name] = _copied(twins[place].__dict__[name])
        buffers = [_Copy.of(self._parts[place], twins[place]._buffers, name) for place, name in self._buffers]
        tensors = [_Copy.of(self._parts[place], twins[place].__dict__, name) for place, name in self._tensors]
        drawn = _Draws.now() if self._training and not self._compared else None
        yield
        if drawn is not None and drawn != _Draws.now():
            drawn.restore()
            raise _refusal(self._parts[0], "draws from the generator of random or NumPy, once for all layers")
        for each in buffers:
            if not each.kept(compared=not self._compared, replaceable=False):
                if each.copy is not None:  # else it was made at its first use
                    _updating.add(each.part)
                raise _refusal(each.part, f"updates its buffer {each.name}")
        for each in tensors:
            if not each.kept(compared=False, replaceable=True):
                raise _refusal(each.part, f"updates its attribute {each.name}")
        self._compared = True


class _Draws(NamedTuple):
    """Where the generators of Python and NumPy are."""

    python: tuple[Any, ...]
    numpy: bytes
    others: tuple[Any, ...]

    @classmethod
    def now(cls) -> _Draws:
        name, key, *others = np.random.get_state(legacy=True)
        return cls(random.getstate(), np.asarray(key).tobytes(), (name, *others))

    def restore(self) -> None:
        random.setstate(self.python)
        name, *others = self.others
        np.random.set_state((name, np.frombuffer(self.numpy, np.uint32), *others))


def _copied(value: Any) -> Any:
    """A container with containers of its own."""
    if type(value) not in _CONTAINERS:
        return value
    fresh = copy.copy(value)
    if isinstance(fresh, dict):
        fresh.update((key, _copied(each)) for key, each in value.items())
    elif isinstance(fresh, (list, deque)):
        for place, each in enumerate(value):
            fresh[place] = _copied(each)
    return fresh


def _refusal(part: nn.Module, what: str) -> UnlikeError:
    mode = "in training " if part.training else ""
    return UnlikeError(f"{type(part).__name__} {mode}{what}: call eval() on it, or pass batched=False")


def _memory(tensor: Tensor | None) -> int | None:
    if tensor is None or wrapped(tensor) or tensor.is_meta or tensor.layout != torch.strided:
        return None
    return tensor.untyped_storage().data_ptr() or None
