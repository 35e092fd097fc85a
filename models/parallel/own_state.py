"""What modules keep on themselves, and may change in an evaluation: buffers, attributes, and what these contain."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from implicit.functorch import innermost, transformed, version, wrapped
from implicit.parametrized import turn

from .copies import SMALL, Originals, copied
from .gather import unread
from .holders import Holder
from .nested import alike, leads_elsewhere, replaced
from .writes import note, writes


class Change(NamedTuple):
    """What an evaluation changed."""

    module: nn.Module
    name: str
    """Of the buffer or attribute."""


class _Lent(NamedTuple):
    """A tensor, and what is in its place during an evaluation."""

    module: nn.Module
    name: str
    tensor: Tensor
    copy: Tensor
    """The tensor itself where it is only watched."""
    version: int

    def changed(self, compared: bool) -> bool:
        """Whether the evaluation wrote into it; without a count, as into its `.data`, only found if `compared`."""
        if version(self.copy) != self.version or self.copy.shape != self.tensor.shape:
            return True
        if not compared or self.copy is self.tensor or wrapped(self.copy) or unread(self.copy):
            return False
        return not torch.equal(self.copy, self.tensor)


class OwnState:
    """What modules keep on themselves, as it is when this is made.

    Within `lent` they have copies of their tensors: whatever an evaluation does, all is as before afterwards, and
    `keep` makes what the last evaluation left the modules' own.

    Args:
        holders: where they keep it.
        stacked: whether tensors that stand for those of many layers are only watched, not copied.
    """

    def __init__(self, holders: Sequence[Holder], stacked: bool = False) -> None:
        self.holders = holders
        self._stacked = stacked
        self._before: dict[int, Tensor] = {}
        self._lent: list[_Lent] = []
        self._held: list[dict[Any, Any]] = []
        """What holders held as the last evaluation began, with copies in place of tensors."""
        self._after: list[dict[Any, Any]] = []
        """What they held when it ended; the same object where nothing was changed."""
        self._kept = False
        """Whether others may have changed the modules since."""

    @contextmanager
    def lent(self) -> Iterator[None]:
        """An evaluation of the modules, as they were when this was made."""
        self._lent, self._after = list(self._copies()), []
        with turn() if self._is_seen() else nullcontext():
            yield from self._lending()

    def _is_seen(self) -> bool:
        """Whether other threads would see what the modules hold during the evaluation."""
        lent = {id(each.tensor) for each in self._lent if each.copy is not each.tensor}
        reached = [each for each in self.holders if each.is_shared or not self._stacked]
        modules = {id(each.module): each.module for each in reached}
        return any(map(writes, modules.values())) or any(
            id(tensor) in lent for each in reached for _, tensor in each.tensors
        )

    def _lending(self) -> Iterator[None]:
        found = [each.now() if self._kept and not each.holds(each.contents) else each.contents for each in self.holders]
        copies = {id(each.tensor): each.copy for each in self._lent}
        memo: dict[int, tuple[Any, Any]] = {}
        self._held = [
            each.contents
            | {
                key: replaced(each.contents[key], lambda tensor: copies[id(tensor)], memo, filled=False)
                for key in dict(each.tensors)
            }
            if each.tensors
            else each.contents
            for each in self.holders
        ]
        changed = [now is not held for now, held in zip(found, self._held, strict=True)]
        try:
            for each, contents in compress(zip(self.holders, self._held, strict=True), changed):
                each.fill(contents)
            yield
            self._after = [
                contents if each.holds(contents) else each.now()
                for each, contents in zip(self.holders, self._held, strict=True)
            ]
            changed = [now is not after for now, after in zip(found, self._after, strict=True)]
        except BaseException:
            changed = [True] * len(found)
            raise
        finally:
            for each, contents in compress(zip(self.holders, found, strict=True), changed):
                each.fill(contents)

    def _copies(self) -> Iterator[_Lent]:
        seen: dict[int, tuple[Holder, Any, Tensor]] = {}
        for each in self.holders:
            for key, tensor in each.tensors:
                seen.setdefault(id(tensor), (each, key, tensor))
        chosen = [tensor for each, _, tensor in seen.values() if self._is_copied(each.module, tensor)]
        copies = copied([self._before.get(id(tensor), tensor) for tensor in chosen])
        places = dict(zip(map(id, chosen), copies, strict=True))
        for each, key, tensor in seen.values():
            copy = places.get(id(tensor), tensor)
            yield _Lent(each.module, each.called(key), tensor, copy, version(copy))

    def _is_copied(self, module: nn.Module, tensor: Tensor) -> bool:
        if type(tensor) is not Tensor or tensor.requires_grad or tensor.layout != torch.strided or tensor.is_meta:
            return False
        if tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            return False
        if wrapped(tensor):
            return not self._stacked
        return (module.training and tensor.nbytes <= SMALL) or writes(module) is not False

    def changes(self, compared: bool) -> Iterator[Change]:
        """What the last evaluation changed.

        Args:
            compared: whether values are compared, if they can be read without waiting for a device.
        """
        for each, held, after in zip(self.holders, self._held, self._after):
            for key in () if after is held else held.keys() | after.keys():
                if key not in held or key not in after or not alike(held[key], after[key]):
                    yield Change(each.module, each.called(key))
        for one in self._lent:
            if one.changed(compared):
                yield Change(one.module, one.name)

    def graphs(self, parameters: Collection[int]) -> Iterator[Change]:
        """Where the last evaluation left tensors with a graph that leads beyond these parameters, given by id."""
        for each, held, after in zip(self.holders, self._held, self._after):
            for key, value in after.items() if after is not held else ():
                if value is not held.get(key) and leads_elsewhere(value, parameters):
                    yield Change(each.module, each.called(key))

    def check_restored(self) -> None:
        """RuntimeError if the last evaluation made submodules, or wrote into a tensor of which there was no copy."""
        for each, held, after in zip(self.holders, self._held, self._after):
            if each.name == "_modules" and after is not held and _others(held, after):
                raise RuntimeError(
                    f"{type(each.module).__name__} makes or replaces submodules in its forward pass, others in each "
                    "sweep: evaluate net(z0) once before, if it does so only at first"
                )
        for one in self._lent:
            if one.copy is one.tensor and one.changed(compared=False):
                reason = (
                    "of which sweeps make no copy: make it a buffer without a graph, or evaluate net(z0) itself"
                    if writes(one.module) is not False
                    else "which it only read before: the next call will expect that"
                )
                note(one.module, True)
                raise RuntimeError(f"{type(one.module).__name__} writes into its {one.name}, {reason}")
            if wrapped(one.copy) and not wrapped(one.tensor) and one.changed(compared=False):
                raise RuntimeError(
                    f"{type(one.module).__name__} writes into its {one.name}, an in-place operation on a tensor that "
                    "torch.func does not follow"
                )

    def keep(self, unwrapped: bool) -> None:
        """Make what the last evaluation left the modules' own: their tensors get the values of the copies.

        Args:
            unwrapped: whether tensors of transforms, which ended with the evaluation, are replaced by their values.
        """
        self._kept = True
        if not self._after:
            return
        try:
            self._settle(unwrapped)
        except BaseException:  # an interrupt: nothing is kept
            for each in self.holders:
                each.fill(each.contents)
            for one in self._lent:
                if id(one.tensor) in self._before:
                    write(one.tensor, self._before[id(one.tensor)])
            raise
        self._lent, self._held, self._after = [], [], []

    def _settle(self, unwrapped: bool) -> None:
        for one in self._lent:
            if one.copy is not one.tensor:
                self._update(one)
        originals = Originals((one.copy, one.tensor) for one in self._lent if one.copy is not one.tensor)
        memo: dict[int, tuple[Any, Any]] = {}

        def settled(tensor: Tensor) -> Tensor:
            found = originals.of(innermost(tensor) if unwrapped else tensor)
            return found if found.grad_fn is None or torch.is_grad_enabled() else found.detach()  # Newton left a graph

        for each, held, after in zip(self.holders, self._held, self._after, strict=True):
            if after is held:
                continue
            kept = {
                name: each.contents[name]
                if name in held and value is held[name]
                else replaced(value, settled, memo, filled=True)
                for name, value in after.items()
            }
            each.fill(kept)

    def _update(self, one: _Lent) -> None:
        tensor, copy, counted = one.tensor, one.copy, version(one.copy) != one.version
        if any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride())):
            return  # an expanded view cannot be written into, but what it is a view of
        if copy.shape != tensor.shape or counted:
            self._before[id(tensor)] = tensor.detach().clone()
            write(tensor, copy)
        elif not (transformed() or wrapped(copy)) and (not copy.is_cpu or not torch.equal(copy, tensor)):
            self._before[id(tensor)] = tensor.detach().clone()
            tensor.data.copy_(copy)


def write(tensor: Tensor, value: Tensor) -> None:
    """Give a tensor another value, and the shape of that."""
    if tensor.shape != value.shape:  # it was given other data, or resized
        tensor.data = value.data
        return
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        tensor.copy_(value)


def _others(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Whether they hold other objects, in whatever order."""
    return one.keys() != other.keys() or any(value is not other[key] for key, value in one.items())
