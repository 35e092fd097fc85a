"""A problem as a pure function of its state and of every tensor that the toolkit knows."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from solvers.problem import Problem


@dataclass(frozen=True)
class _Slot:
    """The place of a known tensor."""

    position: int


@dataclass(frozen=True)
class _Part:
    """A module as it was: its own tensors, or their places, by name."""

    module: nn.Module
    training: bool
    parameters: dict[str, Any]
    buffers: dict[str, Any]
    parametrized: dict[str, Any]


class Explicit:
    """`f(z, *tensors)` on flat states, where `tensors` stand for the arguments, parameters and buffers of a problem.

    Those that it was built with are its `tensors`. A parametrized weight counts as a tensor of its own, as it was when
    this was built. The function evaluates a shallow twin of the module, not compiled, so that neither the module nor
    another thread notices, and what happens to the module later changes nothing.
    """

    def __init__(self, problem: Problem) -> None:
        known: dict[int, tuple[_Slot, Tensor]] = {}

        def placed(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                return known.setdefault(id(value), (_Slot(len(known)), value))[0]
            return value

        self.problem = copy.copy(problem)
        self.problem.args = _mapped(problem.args, placed)
        self.parts = [_part(module, placed) for module in _own_modules(problem.f)]
        self.tensors = tuple(tensor for _, tensor in known.values())

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return self.at(*tensors)(z)

    def at(self, *tensors: Tensor) -> Problem:
        """The problem with these tensors."""

        def filled(value: Any) -> Any:
            return tensors[value.position] if isinstance(value, _Slot) else value

        problem = copy.copy(self.problem)
        problem.args = _mapped(problem.args, filled)
        if self.parts:
            problem.f = self._twin(filled)
        return problem

    def _twin(self, filled: Any) -> nn.Module:
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


def _own_modules(f: Any) -> list[nn.Module]:
    """The module and those within it, without the parametrizations, whose result counts instead."""
    if not isinstance(f, nn.Module):
        return []
    queue = [_plain(f)]
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


def _plain(module: nn.Module) -> nn.Module:
    """The module itself where torch.compile has wrapped it: compiled code has no second derivatives."""
    original = module._modules.get("_orig_mod")
    return module if original is None else original


def _part(module: nn.Module, placed: Any) -> _Part:
    made: Any = module.parametrizations if parametrize.is_parametrized(module) else ()
    return _Part(
        module,
        module.training,
        {name: placed(value) for name, value in module._parameters.items()},
        {name: placed(value) for name, value in module._buffers.items()},
        {name: placed(getattr(module, name)) for name in made},
    )


def _mapped(values: Any, change: Any) -> Any:
    """Nested (named) tuples with every other value changed."""
    if isinstance(values, tuple):
        parts = [_mapped(part, change) for part in values]
        kind: Any = type(values)
        return kind._make(parts) if hasattr(kind, "_make") else tuple(parts)
    return change(values)
