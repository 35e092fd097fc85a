"""Random numbers that are the same in every sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from implicit.suitability import drops

from .gather import unread


class Draws:
    """Lets dropout draw the same masks whenever transforms are evaluated again, so that sweeps approach one network.

    Evaluations after the first one leave the generator of random numbers as it was.

    Args:
        net: whose modules may drop entries now.
        like: a tensor on the device of the masks.
    """

    def __init__(self, net: nn.Module, like: Tensor) -> None:
        self._like = like
        self._first: Tensor | None = None
        self._active = any(module.training and drops(module) for module in net.modules())

    @contextmanager
    def same(self) -> Iterator[None]:
        """Draw as in the first such block."""
        if not self._active or self._like.is_meta:
            yield
            return
        if unread(self._like):
            raise RuntimeError("sweeps over dropout cannot be captured, since each must draw the same: call eval()")
        now = self._state()
        if self._first is None:
            self._first = now
            yield
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
