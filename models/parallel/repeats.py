"""Evaluations of a network in training that repeat one another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from implicit.functorch import transformed
from implicit.suitability import drops

from .gather import captured

SMALL = 2**14
"""Most entries of a buffer that is copied for each evaluation; larger ones, such as masks, are rarely updated."""


class _Buffer(NamedTuple):
    owner: dict[str, Tensor | None]
    """The buffers of its module."""
    name: str
    original: Tensor
    before: Tensor
    """A copy of what it held before the first evaluation."""


def _copyable(buffer: Tensor) -> bool:
    """Whether a buffer is small, and memory that can be written to."""
    if is_lazy(buffer) or buffer.layout != torch.strided:
        return False
    return buffer.numel() <= 1 or (buffer.numel() <= SMALL and 0 not in buffer.stride())


class Repeats:
    """Lets transforms in training draw and update the same at every evaluation, so that sweeps approach one network.

    Each evaluation begins with the random numbers of PyTorch's own generator, and the small buffers, of the first one.
    In the end the generator is where the first one left it, and the buffers are those of the last one, such as running
    statistics.

    Args:
        net: whose modules may draw, as dropout does, or update buffers.
        like: a tensor on the device of what they draw.
    """

    def __init__(self, net: nn.Module, like: Tensor) -> None:
        self._like = like
        training = [module for module in net.modules() if module.training]
        self._training, self._drops = bool(training), any(map(drops, training))
        self._modules = [] if torch.compiler.is_compiling() else training
        self._first: Tensor | None = None
        self._buffers: list[_Buffer] | None = None

    @contextmanager
    def same(self) -> Iterator[None]:
        """Evaluate as in the first such block."""
        if self._drops and captured(self._like):
            raise RuntimeError("sweeps over dropout cannot be captured, since each must draw the same: call eval()")
        if self._buffers is None:
            self._buffers = [
                _Buffer(module._buffers, name, buffer, buffer.clone())
                for module in self._modules
                for name, buffer in module._buffers.items()
                if buffer is not None and _copyable(buffer)
            ]
        else:
            for each in self._buffers:
                each.owner[each.name] = each.original  # it may have been replaced
                # for backward passes of earlier evaluations it has not changed
                (each.original if transformed() else each.original.data).copy_(each.before)
        with self._same_draws():
            yield

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
