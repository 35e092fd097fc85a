"""Evaluations of a network in training that repeat one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from implicit.functorch import transformed, version, wrapped
from implicit.parametrized import lock
from implicit.pure import PLAIN
from implicit.suitability import drops

from .gather import captured

SMALL = 2**17
"""Most bytes of a buffer that is copied for each evaluation; larger ones, such as masks, are rarely updated."""


class _Buffer(NamedTuple):
    owner: dict[str, Any]
    """The buffers, or the attributes, of its module."""
    name: str
    original: Tensor | None
    place: int
    """Of its memory, and how it lies there: it may be given other data, or resized."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, owner: dict[str, Any], name: str, tensor: Tensor | None) -> _Buffer:
        if tensor is None:
            return cls(owner, name, None, 0, (), (), 0)
        return cls(owner, name, tensor, _place(tensor), tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def copied(self, memories: dict[int, Tensor]) -> Tensor | None:
        """The same view of the copy of its memory."""
        if self.original is None:
            return None
        memory, size = memories[self.place], self.original.itemsize
        whole = memory[: len(memory) // size * size].view(self.original.dtype)
        return whole.as_strided(self.shape, self.stride, self.offset)


class Repeats:
    """Lets transforms in training draw and update the same at every evaluation, so that sweeps approach one network.

    Each evaluation begins with the random numbers of PyTorch's own generator of the first one, and with copies of the
    small buffers as they were before the first one: its graph may hold them. In the end the generator is where the
    first one left it, and the buffers have the values of the last one, such as running statistics. Numbers and flags of
    modules with buffers are treated like these. After `close`, as in backward passes that evaluate the network again,
    all stay as they are.

    Args:
        modules: may draw, as dropout does, or update buffers.
        like: a tensor on the device of what they draw.
    """

    def __init__(self, modules: Iterable[nn.Module], like: Tensor) -> None:
        self._like = like
        training = [module for module in modules if module.training]
        self._training, self._drops = bool(training), any(map(drops, training))
        self._first: Tensor | None = None
        self._open = True
        self._modules = training
        self._holders = [module for module in training if module._buffers]
        self._attributes: list[dict[str, Any]] = []
        self._memories: dict[int, Tensor] = {}
        self._buffers: list[_Buffer] = []

    def close(self) -> None:
        """Keep what later evaluations update apart."""
        self._open = False

    @contextmanager
    def same(self, updates: bool = True) -> Iterator[None]:
        """Evaluate as in the first such block.

        Args:
            updates: whether buffers may be updated.
        """
        if self._drops and captured(self._like):
            raise RuntimeError("sweeps over dropout cannot be captured, since each must draw the same: call eval()")
        with self._same_buffers() if updates and self._holders else nullcontext(), self._same_draws():
            yield

    def _held(self) -> Iterator[_Buffer]:
        """The buffers whose memory can be copied, which is done, and attributes that share it."""
        for module in self._holders:
            for name, buffer in module._buffers.items():
                if buffer is not None and _is_copyable(buffer) and _place(buffer) not in self._memories:
                    whole = torch.empty(0, dtype=torch.uint8, device=buffer.device).set_(buffer.untyped_storage())
                    self._memories[_place(buffer)] = whole.clone()
                if buffer is None or _is_copyable(buffer):
                    yield _Buffer.of(module._buffers, name, buffer)
        for module in self._modules:
            for name, value in module.__dict__.items():
                if isinstance(value, Tensor) and _is_copyable(value) and _place(value) in self._memories:
                    yield _Buffer.of(module.__dict__, name, value)

    @contextmanager
    def _same_buffers(self) -> Iterator[None]:
        with lock:
            if not self._attributes:
                self._buffers = [*self._held()]
                self._attributes = [_plain(module) for module in self._holders]
            memories = {place: memory.clone() for place, memory in self._memories.items()}
            copies = [each.copied(memories) for each in self._buffers]
            before = [each.owner.get(each.name) for each in self._buffers]
            plain = [_plain(module) for module in self._holders]
            for each, copy in zip(self._buffers, copies, strict=True):
                each.owner[each.name] = copy
            self._set_attributes(self._attributes)  # which may say what the buffers hold
            versions = [version(copy) for copy in copies]
            done = False
            try:
                yield
                done = True
            finally:
                if not (done and self._open):
                    self._set_attributes(plain)
                for each, copy, found, then in zip(self._buffers, copies, before, versions, strict=True):
                    if not (done and self._open):
                        each.owner[each.name] = found
                    elif each.owner.get(each.name) is copy:
                        each.owner[each.name] = each.original
                        unchanged = each.copied(self._memories)
                        if each.original is not None and copy is not None and unchanged is not None:
                            _update(each.original, copy, unchanged, version(copy) != then)

    def _set_attributes(self, values: list[dict[str, Any]]) -> None:
        for module, attributes in zip(self._holders, values, strict=True):
            module.__dict__.update(attributes)

    @contextmanager
    def _same_draws(self) -> Iterator[None]:
        idle = self._like.is_meta or captured(self._like) or (self._like.is_cuda and not torch.cuda.is_initialized())
        if not self._training or idle or (torch.compiler.is_compiling() and not self._drops):
            yield
            return
        now = self._state()
        if self._first is None:
            try:
                yield
            except BaseException:
                self._set(now)  # the transforms are evaluated in another way
                raise
            self._first = now
            return
        self._set(self._first)
        try:
            yield
        finally:
            self._set(now)

    def _state(self) -> Tensor:
        return torch.cuda.get_rng_state(self._like.device) if self._like.is_cuda else torch.get_rng_state()

    def _set(self, state: Tensor) -> None:
        if self._like.is_cuda:
            torch.cuda.set_rng_state(state, self._like.device)
        else:
            torch.set_rng_state(state)


def _plain(module: nn.Module) -> dict[str, Any]:
    """Numbers, words and flags that a module keeps, but for its mode."""
    return {name: value for name, value in module.__dict__.items() if type(value) in PLAIN and name != "training"}


def _update(original: Tensor, copy: Tensor, unchanged: Tensor, counted: bool) -> None:
    """Give a buffer the value of its copy, if an evaluation has changed that, even in a way that is not counted."""
    if copy.shape != original.shape:  # it was given other data, or resized
        original.data = copy.data
    elif counted:
        with torch.inference_mode() if original.is_inference() else torch.no_grad():
            original.copy_(copy)
    elif not transformed():
        if not copy.is_cpu:
            original.data.copy_(torch.where(copy == unchanged, original, copy))
        elif not torch.equal(copy, unchanged):
            original.data.copy_(copy)


def _is_copyable(buffer: Tensor) -> bool:
    """Whether it is a plain tensor in a small piece of memory, that no gradient passes through."""
    if type(buffer) is not Tensor or wrapped(buffer) or buffer.requires_grad or buffer.layout != torch.strided:
        return False
    if buffer.is_meta or buffer.is_conj() or buffer.is_neg():
        return False
    return 0 < buffer.untyped_storage().nbytes() <= SMALL


def _place(buffer: Tensor) -> int:
    return buffer.untyped_storage().data_ptr()
