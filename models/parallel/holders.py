"""Where modules keep what their evaluations may change: attributes, buffers, and the containers that they reach."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable
from dataclasses import is_dataclass
from operator import is_
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from implicit.pure import PLAIN

_CONTAINERS = {dict, OrderedDict, defaultdict, Counter, list, deque, set}
_LEAVES = PLAIN | {Tensor, nn.Parameter}
_FIXED = nn.Module().__dict__.keys() - {"_buffers"}


def may_write(module: nn.Module) -> bool:
    """Whether evaluations may change what it keeps: PyTorch's layers change buffers in training, nothing else."""
    if isinstance(module, torch.jit.ScriptModule):
        return False  # it hides what it keeps
    is_known = type(module).__module__.startswith(("torch.nn.", "torch.distributed."))
    return not is_known or bool(module.training and module._buffers)


class Holder:
    """A module or container that may be changed, and what it held.

    Args:
        module: the one that reaches it.
        name: of the module's attribute; empty for the module itself.
        place: the module or container.
    """

    def __init__(self, module: nn.Module, name: str, place: Any) -> None:
        self.module, self.name = module, name
        self._place: Any = place if type(place) in _CONTAINERS else vars(place)
        self.contents = self.now()
        self.is_shared = name not in ("", "_buffers")
        """Whether a twin of the module reaches it, too."""
        self.tensors = [key for key, value in self.contents.items() if isinstance(value, Tensor)]

    def now(self) -> dict[Any, Any]:
        """What it holds, by name or place."""
        if isinstance(self._place, dict):
            return dict(self._place)
        return dict.fromkeys(self._place) if isinstance(self._place, set) else dict(enumerate(self._place))

    def holds(self, contents: dict[Any, Any]) -> bool:
        """Whether it holds these objects and no others."""
        place = self._place
        if len(place) != len(contents):
            return False
        if isinstance(place, dict):
            return all(map(is_, place, contents)) and all(map(is_, place.values(), contents.values()))
        return all(map(is_, place, contents if isinstance(place, set) else contents.values()))

    def fill(self, contents: dict[Any, Any]) -> None:
        """Let it hold these."""
        place = self._place
        if self.holds(contents):
            return
        if isinstance(place, dict):
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
    """The modules, their buffers, and the containers that they and their classes reach."""
    every: list[Holder] = []
    found: set[int] = set()
    kinds: set[type] = set()

    def visit(module: nn.Module, name: str, value: Any) -> None:
        kind = type(value)
        if kind is tuple:
            for each in value:
                visit(module, name, each)
        elif kind in _CONTAINERS or kind is SimpleNamespace or (is_dataclass(kind) and hasattr(value, "__dict__")):
            hold(module, name, value)

    def hold(module: nn.Module, name: str, value: Any) -> None:
        if id(value) in found:
            return
        found.add(id(value))
        held = Holder(module, name, value)
        every.append(held)
        for key, each in held.contents.items():
            if type(each) not in _LEAVES and (name or key not in _FIXED):
                visit(module, name or str(key), each)

    for module in modules:
        hold(module, "", module)
        for kind in type(module).__mro__:
            if kind not in kinds and not kind.__module__.startswith(("torch.", "builtins")):
                kinds.add(kind)
                for name, value in vars(kind).items():
                    if type(value) in _CONTAINERS:
                        visit(module, name, value)
    return every
