"""A module as a pure function of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class _Slot:
    """The place of a known tensor."""

    position: int


class Known:
    """Floating-point tensors in order of discovery, each once."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[_Slot, Tensor]] = {}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those found so far."""
        return tuple(tensor for _, tensor in self._slots.values())

    def placed(self, value: Any) -> Any:
        """A floating-point tensor's place, which is new if need be; anything else as it is."""
        if isinstance(value, Tensor) and value.is_floating_point():
            return self._slots.setdefault(id(value), (_Slot(len(self._slots)), value))[0]
        return value

    @staticmethod
    def places(value: Any) -> bool:
        """Whether it is what `placed` puts in a tensor's place."""
        return isinstance(value, _Slot)

    @staticmethod
    def filling(tensors: Sequence[Tensor]) -> Callable[[Any], Any]:
        """The inverse of `placed`, with these tensors in the places."""
        return lambda value: tensors[value.position] if isinstance(value, _Slot) else value


@dataclass(frozen=True)
class _Part:
    """A module as it was: its own tensors, or their places, by name."""

    module: nn.Module
    training: bool
    parameters: dict[str, Any]
    buffers: dict[str, Any]
    parametrized: dict[str, Any]


class PureModule:
    """A module whose tensors are handed in: parameters, buffers, and parametrized weights as they are now.

    Their places are kept in `known`. What happens to the module later changes nothing. Code of torch.compile is left
    out in favour of the module that was compiled, and so are parametrizations, whose results count instead.
    """

    def __init__(self, module: nn.Module, known: Known) -> None:
        self.parts = [_part(part, known.placed) for part in own_modules(module)]
        self.module = module

    def twin(self, tensors: Sequence[Tensor]) -> nn.Module:
        """A shallow copy of the module with these tensors in the known ones' places."""
        if not self.parts:
            return self.module
        filled = Known.filling(tensors)
        twins: dict[int, nn.Module] = {}
        for part in self.parts:
            kind: Any = parametrize.type_before_parametrizations(part.module)
            twin = twins[id(part.module)] = kind.__new__(kind)
            twin.__dict__.update(part.module.__dict__)
            twin.__dict__.update(
                training=part.training,
                _parameters={name: filled(value) for name, value in part.parameters.items()},
                _buffers={name: filled(value) for name, value in part.buffers.items()},
                **{name: filled(value) for name, value in part.parametrized.items()},
            )
        for part in self.parts:
            children = part.module._modules.items()
            twins[id(part.module)].__dict__["_modules"] = {
                name: child if child is None else twins.get(id(_plain(child)), child) for name, child in children
            }
        return twins[id(self.parts[0].module)]


def own_modules(module: nn.Module) -> list[nn.Module]:
    """The module and those within it; none where TorchScript has hidden them."""
    queue = [_plain(module)]
    found = {id(queue[0])}
    for module in queue:
        if isinstance(module, torch.jit.ScriptModule):
            return []
        for name, child in module._modules.items():
            if child is None or id(_plain(child)) in found:
                continue
            if name == "parametrizations" and parametrize.is_parametrized(module):
                continue
            queue.append(_plain(child))
            found.add(id(queue[-1]))
    return queue


def own_tensors(parts: Sequence[nn.Module]) -> list[Tensor]:
    """The floating-point tensors of modules as `own_modules` lists them, in the order of a `PureModule`'s places."""
    found: dict[int, Tensor] = {}
    for part in parts:
        made = [getattr(part, name) for name in _parametrized(part)]
        for value in (*part._parameters.values(), *part._buffers.values(), *made):
            if value is not None and value.is_floating_point():
                found[id(value)] = value
    return list(found.values())


def _plain(module: nn.Module) -> nn.Module:
    """The module itself where torch.compile has wrapped it: compiled code has no second derivatives."""
    original = module._modules.get("_orig_mod")
    return module if original is None else original


def _part(module: nn.Module, placed: Callable[[Any], Any]) -> _Part:
    return _Part(
        module,
        module.training,
        {name: placed(value) for name, value in module._parameters.items()},
        {name: placed(value) for name, value in module._buffers.items()},
        {name: placed(getattr(module, name)) for name in _parametrized(module)},
    )


def _parametrized(module: nn.Module) -> Any:
    return module.parametrizations if "parametrizations" in module._modules else ()
