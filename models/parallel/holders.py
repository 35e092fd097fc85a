"""Where modules keep what their evaluations may change: attributes, buffers, and the containers that they reach."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, MutableMapping
from dataclasses import fields, is_dataclass
from operator import is_
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from implicit.pure import PLAIN

_CONTAINERS = {dict, OrderedDict, defaultdict, Counter, list, deque, set}
_STANDARD = nn.Module().__dict__.keys() | set()
_FIXED = _STANDARD - {"_buffers"}


def is_of_pytorch(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's own layers or containers."""
    return type(module).__module__.startswith(("torch.nn.", "torch.distributed."))


class _Fields(MutableMapping[str, Any]):
    """The attributes of these names, of an object that keeps them in no `__dict__`."""

    def __init__(self, owner: Any, names: Iterable[str]) -> None:
        self._owner, self._names = owner, list(names)
        self._set = setattr if isinstance(owner, nn.Module) else object.__setattr__  # a dataclass may be frozen

    def __getitem__(self, name: str) -> Any:
        return getattr(self._owner, name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._set(self._owner, name, value)

    def __delitem__(self, name: str) -> None:
        object.__delattr__(self._owner, name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if hasattr(self._owner, name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _place(value: Any) -> Any:
    """Where a module, a dataclass or a container keeps what can be replaced."""
    if type(value) in _CONTAINERS:
        return value
    if isinstance(value, torch.jit.ScriptModule):  # it hides everything else
        return _Fields(value, (name for name, _ in value.named_buffers(recurse=False)))
    return vars(value) if hasattr(value, "__dict__") else _Fields(value, (field.name for field in fields(value)))


class Holder:
    """A module or container that may be changed, and what it held.

    Args:
        module: the one that reaches it.
        name: of the module's attribute; empty for the module itself.
        place: the module or container.
    """

    def __init__(self, module: nn.Module, name: str, place: Any) -> None:
        self.module, self.name = module, name
        self._place = _place(place)
        self._is_mapping = isinstance(self._place, (dict, _Fields))
        self.contents = self.now()
        self.is_shared = name not in ("", "_buffers")
        """Whether a twin of the module reaches it, too."""
        self.tensors: list[Any] = []
        """Where tensors are."""
        self.places: list[Any] = []
        """Where others are that may be changed."""
        passed = _passed(place)
        for key, value in self.contents.items():
            if key in passed or type(value) in PLAIN:
                continue
            if isinstance(value, Tensor):
                self.tensors.append(key)
            elif _is_place(value):
                self.places.append(key)

    def now(self) -> dict[Any, Any]:
        """What it holds, by name or place."""
        if self._is_mapping:
            return dict(self._place)
        return dict.fromkeys(self._place) if isinstance(self._place, set) else dict(enumerate(self._place))

    def holds(self, contents: dict[Any, Any]) -> bool:
        """Whether it holds these objects and no others."""
        place = self._place
        if len(place) != len(contents):
            return False
        if self._is_mapping:
            return all(map(is_, place, contents)) and all(map(is_, place.values(), contents.values()))
        return all(map(is_, place, contents if isinstance(place, set) else contents.values()))

    def fill(self, contents: dict[Any, Any]) -> None:
        """Let it hold these."""
        place = self._place
        if self.holds(contents):
            return
        if self._is_mapping:
            for key in list(place) if self.name else place.keys() - contents.keys():  # in containers the order counts
                del place[key]
            for key, value in contents.items():  # not update(), which adds to a Counter
                place[key] = value
        else:
            place.clear()
            if isinstance(place, set):
                place.update(contents)
            else:
                place.extend(contents.values())

    def called(self, key: Any) -> str:
        """The name of what it holds there."""
        return self.name if self.is_shared else str(key)


def holders(modules: Iterable[nn.Module]) -> list[Holder]:
    """The modules, their buffers, and the containers and further modules that they and their classes reach."""
    modules = list(modules)
    every: list[Holder] = []
    found: set[int] = set()
    kinds: set[type] = set()
    own = set(map(id, modules))
    queue: deque[tuple[nn.Module, str, Any]] = deque((module, "", module) for module in modules)
    for module in modules:
        for kind in type(module).__mro__:
            if kind not in kinds and not kind.__module__.startswith(("torch.", "builtins")):
                kinds.add(kind)
                queue.extend((module, name, value) for name, value in vars(kind).items() if _is_place(value))
    while queue:
        module, name, value = queue.popleft()
        if type(value) is tuple:
            queue.extend((module, name, each) for each in value if _is_place(each))
            continue
        if id(value) in found or (name and id(value) in own):
            continue
        found.add(id(value))
        held = Holder(module, name, value)
        every.append(held)
        queue.extend((module, name or str(key), held.contents[key]) for key in held.places)
        if name and isinstance(value, nn.Module):  # in a list, say, where it is no submodule
            queue.append((module, name, value._modules))
    return every


def _passed(place: Any) -> Collection[str]:
    """The attributes that evaluations leave as they are."""
    if not isinstance(place, nn.Module):
        return ()
    return _STANDARD if is_of_pytorch(place) and not place._buffers else _FIXED  # to which nobody adds buffers


def _is_place(value: Any) -> bool:
    kind = type(value)
    if kind is tuple or kind in _CONTAINERS:
        return True
    return kind is SimpleNamespace or is_dataclass(kind) or isinstance(value, nn.Module)
