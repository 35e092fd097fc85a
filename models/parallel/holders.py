"""Where modules keep what their evaluations may change: attributes, buffers, and the containers that they reach."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from implicit.pure import PLAIN

from .nested import tensors_within
from .places import Fields, is_a, is_place, place_of

_PASSED = nn.Module().__dict__.keys() - {"_buffers", "_modules"}


class Holder:
    """A module or container that may be changed, and what it held.

    Args:
        module: the one that reaches it.
        name: of the module's attribute; empty for the module itself.
        place: the module or container.
    """

    def __init__(self, module: nn.Module, name: str, place: Any) -> None:
        self.module, self.name, self.identity = module, name, id(place)
        self._place = place_of(place)
        self._is_ordered = isinstance(self._place, dict) and self._place is place
        self._is_mapping = isinstance(self._place, (dict, Fields))
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
            elif is_place(value):
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
        if not contents:
            return True
        if self._is_mapping:
            return all(map(is_, place, contents)) and all(map(is_, place.values(), contents.values()))
        return all(map(is_, place, contents if isinstance(place, set) else contents.values()))

    def fill(self, contents: dict[Any, Any]) -> None:
        """Let it hold these."""
        place = self._place
        if self.holds(contents):
            return
        if self._is_mapping:
            kept = [key for key in place if key in contents]
            moved = self._is_ordered and not all(map(is_, kept, contents))  # 1 and 1.0 are equal keys
            for key in list(place) if moved else place.keys() - contents.keys():  # as few as possible: others may look
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
                queue.extend((module, name, value) for name, value in vars(kind).items() if is_place(value))
    while queue:
        module, name, value = queue.popleft()
        if is_a(value, tuple):
            queue.extend((module, name, each) for each in value if is_place(each))
        elif id(value) not in found and not (name and id(value) in own):
            found.add(id(value))
            held = Holder(module, name, value)
            every.append(held)
            queue.extend((module, name or str(key), held.contents[key]) for key in held.places)
            if name and is_a(value, torch.jit.ScriptModule):
                queue.extend((module, name, child) for child in value.children())
    return every
