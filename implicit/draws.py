"""Random numbers that are the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(shape: torch.Size | tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers in the dtype and on the device of `like`, drawn in float64 on the CPU.

    Args:
        shape: of the result.
        like: any tensor.
        generator: on the CPU; None: a new one with a fixed seed, so that each call gives the same numbers.
    """
    if generator is None:
        generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(like)
