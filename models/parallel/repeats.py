"""Evaluations of a network in training that repeat one another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from implicit.suitability import drops

from .gather import captured


class Repeats:
    """Lets transforms in training draw and update the same at every evaluation, so that sweeps approach one network.

    Each evaluation begins with the random numbers and the buffers of the first one. In the end the generator is where
    the first one left it, and the buffers are those of the last one, such as running statistics.

    Args:
        net: whose modules may draw, as dropout does, or update buffers.
        like: a tensor on the device of what they draw.
    """

    def __init__(self, net: nn.Module, like: Tensor) -> None:
        self._like = like
        training = [module for module in net.modules() if module.training]
        self._training, self._drops = bool(training), any(map(drops, training))
        self._buffers = [buffer for module in training for buffer in module._buffers.values() if buffer is not None]
        self._first: Tensor | None = None
        self._before: list[Tensor] | None = None

    @contextmanager
    def same(self) -> Iterator[None]:
        """Evaluate as in the first such block."""
        if self._drops and captured(self._like):
            raise RuntimeError("sweeps over dropout cannot be captured, since each must draw the same: call eval()")
        if self._before is None:
            self._before = [buffer.clone() for buffer in self._buffers]
        else:
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.data.copy_(before)  # for backward passes of earlier evaluations it has not changed
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
