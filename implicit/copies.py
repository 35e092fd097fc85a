"""Copies of modules that may hold objects that cannot be copied, and modules whose buffers are restored."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def copied(module: M) -> M:
    """A deep copy that drops the graphs of tensors and shares what cannot be copied (locks, open files).

    Raises:
        TypeError: a TorchScript module within cannot be copied.
    """
    twin: M = _copied(module, {})
    return twin


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy`, or part by part where that fails; `memo` is as in `deepcopy`."""
    if id(value) in memo:
        return memo[id(value)]
    trial = dict(memo)  # a failed copy leaves incomplete entries behind
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
    if original is not None:  # torch.compile's wrapper also holds the module in its code
        twin: nn.Module = _copied(original, memo)
        memo[id(module)] = twin
        return twin
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"a {type(module).__name__} cannot be copied, and only a copy is examined")
    twin = memo[id(module)] = object.__new__(type(module))
    for name, value in vars(module).items():
        twin.__dict__[name] = _copied(value, memo)
    twin.__dict__["_compiled_call_impl"] = None
    return twin


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore the values of buffers after the block: a copy may still reach the original's modules.

    For example, a patched `forward` may be a function that closes over the original module.
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
    """Whether to restore it: sparse buffers are left out, and inference tensors cannot change outside that mode."""
    return buffer.layout is torch.strided and not buffer.is_inference()
