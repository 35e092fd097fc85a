"""Random numbers that are the same in every sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from implicit.suitability import drops

from .gather import unread


class Draws:
    """Lets transforms in training draw the same whenever they are evaluated again, so that sweeps approach one network.

    Evaluations after the first one leave the generator of random numbers as it was.

    Args:
        net: whose modules may draw, as dropout does.
        like: a tensor on the device of what they draw.
    """

    def __init__(self, net: nn.Module, like: Tensor) -> None:
        self._like = like
        self._first: Tensor | None = None
        training = [module for module in net.modules() if module.training]
        self._training, self._drops = bool(training), any(map(drops, training))

    @contextmanager
    def same(self) -> Iterator[None]:
        """Draw as in the first such block."""
        if self._drops and unread(self._like) and not self._like.is_meta:
            raise RuntimeError("sweeps over dropout cannot be captured, since each must draw the same: call eval()")
        compiled = torch.compiler.is_compiling() and not self._drops
        fake = self._like.is_cuda and not torch.cuda.is_initialized()
        if not self._training or unread(self._like) or compiled or fake:
            yield
            return
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
