"""Guesses of the outputs of layers, which may lie far from those of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .gather import unread
from .trajectory import parts

ASTRAY = 1e3
"""Outputs this many times as large as the last ones come from guesses far from any point of the network."""


def finite(outputs: Any) -> Any:
    """The outputs, with zeros for what overflowed: an equally good guess that, times 0, spoils no earlier layer."""
    found = [torch.where(part.isfinite(), part, 0) for part in parts(outputs)]
    return tuple(found) if isinstance(outputs, tuple) else found[0]


def size(tensors: list[Tensor]) -> Tensor:
    """The largest absolute entry."""
    sizes = [tensor.detach().abs().amax() for tensor in tensors if tensor.numel()]
    return torch.stack(sizes).amax() if sizes else tensors[0].new_zeros(())


def astray(sizes: list[Tensor]) -> Tensor:
    """Whether guesses have left the region where the network works."""
    return ~(torch.stack(sizes).amax() <= ASTRAY * sizes[-1]) if sizes else torch.tensor(False, device="cpu")


def known(flag: Tensor | bool) -> bool:
    """Whether it is known to be true."""
    return flag if isinstance(flag, bool) else not unread(flag) and bool(flag)
