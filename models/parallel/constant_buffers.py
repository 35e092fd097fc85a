"""Buffers of modules in training that are evaluated as one, where updates would not reach each layer's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from implicit.functorch import innermost, wrapped
from implicit.pure import own_modules

from .gather import unread
from .likeness import UnlikeError

_updating: WeakSet[nn.Module] = WeakSet()
"""Modules that were seen to update a buffer."""


class _Copy(NamedTuple):
    part: nn.Module
    """The one that reads it, as it was before evaluations."""
    twin: nn.Module
    name: str
    original: Tensor | None
    copy: Tensor | None
    version: int

    @classmethod
    def of(cls, part: nn.Module, twin: nn.Module, name: str, original: Tensor | None) -> _Copy:
        copy = None if original is None else original.clone()
        twin._buffers[name] = copy
        return cls(part, twin, name, original, copy, _version(copy))

    def kept(self, compared: bool) -> bool:
        """Whether the twin still has it, unchanged; updates of its `.data` are found only if it is compared."""
        if self.twin._buffers.get(self.name) is not self.copy or _version(self.copy) != self.version:
            return False
        if not compared or self.copy is None or self.original is None or unread(self.copy):
            return True  # vmap refuses the `.data` of a batch
        return torch.equal(self.copy, self.original)


class ConstantBuffers:
    """The buffers of modules in training, such as masks and tables of positions, which evaluations may only read.

    A change is an `UnlikeError`; from then on, the module is refused at once.

    Args:
        parts: a module and those within it, the first of those evaluated as one.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self._parts = [part if part.training and part._buffers else None for part in parts]
        self._compared = False
        watched = [part for part in self._parts if part is not None]
        memories = {_memory(buffer) for part in watched for buffer in part._buffers.values()} - {None}
        for part in watched:
            if part in _updating or (isinstance(part, _NormBase) and part.running_mean is not None):
                raise _refusal(part, "updates its buffers")
            for name, value in part.__dict__.items():
                if isinstance(value, Tensor) and _memory(value) in memories:
                    raise _refusal(part, f"has an attribute, {name}, in the memory of a buffer")

    @contextmanager
    def only_read(self, twin: nn.Module) -> Iterator[None]:
        """An evaluation of the module's twin, which gets copies."""
        if not any(self._parts):
            yield
            return
        if torch.is_inference_mode_enabled():
            raise UnlikeError("in inference mode, updates of buffers are not counted: call eval(), or use no_grad()")
        copies = [
            _Copy.of(part, other, name, buffer)
            for part, other in zip(self._parts, own_modules(twin), strict=True)
            if part is not None
            for name, buffer in other._buffers.items()
        ]
        yield
        for each in copies:
            if not each.kept(compared=not self._compared):
                if each.copy is not None:  # else it was made at its first use
                    _updating.add(each.part)
                raise _refusal(each.part, f"updates its buffer {each.name}")
        self._compared = True


def _refusal(part: nn.Module, what: str) -> UnlikeError:
    return UnlikeError(f"{type(part).__name__} in training {what}: call eval() on it, or pass batched=False")


def _memory(tensor: Tensor | None) -> int | None:
    if tensor is None or wrapped(tensor) or tensor.is_meta or tensor.layout != torch.strided:
        return None
    return tensor.untyped_storage().data_ptr() or None


def _version(tensor: Tensor | None) -> int:
    return 0 if tensor is None else innermost(tensor)._version
