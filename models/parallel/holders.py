"""Where modules keep what their evaluations may change: attributes, buffers, and the containers that they reach."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import is_dataclass
from operator import is_
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from implicit.pure import PLAIN

from .nested import is_a, tensors_within

_CONTAINERS = {dict, OrderedDict, defaultdict, Counter, list, deque, set}
_PASSED = nn.Module().__dict__.keys() - {"_buffers", "_modules"}


class _Fields(MutableMapping[str, Any]):
    """The attributes of an object that keeps some of them, those of these names, in no `__dict__`."""

    def __init__(self, owner: Any, names: Iterable[str]) -> None:
        self._owner, self._names = owner, list(names)
        # a dataclass may be frozen
        self._set = setattr if isinstance(owner, torch.jit.ScriptModule) else object.__setattr__
        self._more = {} if isinstance(owner, torch.jit.ScriptModule) else getattr(owner, "__dict__", {})

    def __getitem__(self, name: str) -> Any:
        return getattr(self._owner, name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._set(self._owner, name, value)

    def __delitem__(self, name: str) -> None:
        object.__delattr__(self._owner, name)

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in self._names if hasattr(self._owner, name))
        yield from self._more

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _place(value: Any) -> Any:
    """Where a module, a dataclass or a container keeps what can be replaced."""
    if type(value) in _CONTAINERS:
        return value
    if is_a(value, torch.jit.ScriptModule):  # it hides everything else
        return _Fields(value, (name for name, _ in value.named_buffers(recurse=False)))
    slots = [] if is_a(value, nn.Module) else list(_slots(type(value)))
    return _Fields(value, slots) if slots else vars(value)


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                yield f"_{base.__name__.lstrip('_')}{name}" if name[:2] == "__" != name[-2:] else name


class Holder:
    """A module or container that may be changed, and what it held.

    Args:
        module: the one that reaches it.
        name: of the module's attribute; empty for the module itself.
        place: the module or container.
    """

    def __init__(self, module: nn.Module, name: str, place: Any) -> None:
        self.module, self.name, self.identity = module, name, id(place)
        self._place = _place(place)
        self._is_ordered = isinstance(self._place, (dict, OrderedDict)) and self._place is place
        self._is_mapping = isinstance(self._place, (dict, _Fields))
        self.contents = self.now()
        self.is_shared = name not in ("", "_buffers", "_modules")
        """Whether a twin of the module reaches it, too."""
        self.tensors: list[tuple[Any, Tensor]] = []
        """Those that it holds, or that are in tuples that it holds, with their places."""
        self.places: list[Any] = []
        """Where it holds what may be changed itself."""
        passed = _PASSED if is_a(place, nn.Module) else ()
        for key, value in self.contents.items():
            kind = type(value)
            if key in passed or kind in PLAIN:
                continue
            if issubclass(kind, Tensor):
                self.tensors.append((key, value))
            elif issubclass(kind, tuple):
                self.tensors += [(key, tensor) for tensor in tensors_within(value)]
                self.places.append(key)
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
            for key in list(place) if self._is_ordered else place.keys() - contents.keys():
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


def holders(modules: Iterable[nn.Module], known: Iterable[Holder] = ()) -> list[Holder]:
    """The modules, their buffers and submodules, and the containers and further modules that they and classes reach.

    Args:
        modules: those that reach them.
        known: left out.
    """
    modules = list(modules)
    every: list[Holder] = []
    kinds: set[type] = set()
    own, found = set(map(id, modules)), {each.identity for each in known}
    queue: deque[tuple[nn.Module, str, Any]] = deque((module, "", module) for module in modules)
    for module in modules:
        for kind in type(module).__mro__:
            if kind not in kinds and not kind.__module__.startswith(("torch.", "builtins")):
                kinds.add(kind)
                queue.extend((module, name, value) for name, value in vars(kind).items() if _is_place(value))
    while queue:
        module, name, value = queue.popleft()
        if is_a(value, tuple):
            queue.extend((module, name, each) for each in value if _is_place(each))
        elif id(value) not in found and not (name and id(value) in own):
            found.add(id(value))
            held = Holder(module, name, value)
            every.append(held)
            queue.extend((module, name or str(key), held.contents[key]) for key in held.places)
            if name and is_a(value, torch.jit.ScriptModule):
                queue.extend((module, name, child) for child in value.children())
    return every


def _is_place(value: Any) -> bool:
    kind = type(value)
    return kind in _CONTAINERS or kind is SimpleNamespace or is_dataclass(kind) or issubclass(kind, (tuple, nn.Module))
