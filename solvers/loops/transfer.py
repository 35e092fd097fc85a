"""Transfers between the host and a device, neither of which waits for the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def on_device(array: Any, like: Tensor) -> Tensor:
    """The NumPy array as a tensor on the device of another one."""
    return torch.from_numpy(array).to(like.device, non_blocking=True)  # other steps may have been launched already


class Transfer:
    """Copies norms from a GPU to pinned memory, one at a time, without waiting for later launches."""

    def __init__(self) -> None:
        self._pinned: dict[torch.Size, Tensor] = {}
        self._event: torch.cuda.Event | None = None

    def begin(self, norms: Tensor) -> None:
        """Start a copy, which overwrites the previous one."""
        self._found = norms
        if norms.is_cuda:
            kept = self._pinned.get(norms.shape)
            if kept is None or kept.dtype != norms.dtype:
                kept = torch.empty(norms.shape, dtype=norms.dtype, device="cpu", pin_memory=True)
                self._pinned[norms.shape], self._event = kept, torch.cuda.Event()
            assert self._event is not None
            self._found = kept.copy_(norms, non_blocking=True)
            self._event.record(torch.cuda.current_stream(norms.device))

    def wait(self) -> Tensor:
        """Wait for the copy: the one synchronisation of a stretch."""
        if self._event is not None:
            self._event.synchronize()
        return self._found
