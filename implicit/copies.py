"""Copies of modules that may hold what cannot be copied, and modules that are left as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def copied(module: M) -> M:
    """A deep copy: of tensors that have a graph without it, and sharing what refuses to be copied (locks, open files).

    Raises:
        TypeError: a module within refuses, and cannot be taken apart.
    """
    twin: M = _copied(module, {})
    return twin


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy`, which goes on inside where that fails; `memo` is as there."""
    if id(value) in memo:
        return memo[id(value)]
    trial = dict(memo)  # a copy that fails leaves halves behind
    try:
        twin = copy.deepcopy(value, trial)
    except Exception:  # whatever the user's objects raise
        pass
    else:
        memo.update(trial)
        return twin
    if isinstance(value, nn.Module):
        return _copied_module(value, memo)
    if isinstance(value, dict):
        twin = copy.copy(value)
        twin.update({key: _copied(part, memo) for key, part in value.items()})
    elif type(value) in (list, tuple, set):
        twin = type(value)(_copied(part, memo) for part in value)
    elif isinstance(value, Tensor):
        twin = value.detach().clone().requires_grad_(value.requires_grad)
    else:
        twin = value
    memo[id(value)] = twin
    return twin


def _copied_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    original = module._modules.get("_orig_mod")
    if original is not None:  # torch.compile's wrapper keeps the module in its code, too
        twin: nn.Module = _copied(original, memo)
        memo[id(module)] = twin
        return twin
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"a {type(module).__name__} cannot be copied, and only a copy is looked at")
    twin = memo[id(module)] = object.__new__(type(module))
    for name, value in vars(module).items():
        twin.__dict__[name] = _copied(value, memo)
    twin.__dict__["_compiled_call_impl"] = None
    return twin


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Buffers have the values after the block that they had before: a copy may still lead to the original's modules.

    A patched `forward` does, for example, that is a function made around the module.
    """
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if _may_change(buffer)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _may_change(buffer: Tensor) -> bool:
    """Whether it is watched: no sparse one, and outside inference mode nothing can write into one of inside."""
    return buffer.layout is torch.strided and not buffer.is_inference()
