"""Cells under `torch.compile`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within the block, evaluate cells so that they have second derivatives: uncompiled, without fused attention.

    A cell that chooses its own attention kernel keeps it.
    """
    with uncompiled_cells(), sdpa_kernel(SDPBackend.MATH):
        yield


def uncompiled_cells() -> AbstractContextManager[Any]:
    """Within the block, run compiled modules as they were written: compiled code can be differentiated only once.

    AOTAutograd has no second derivatives, and its backward pass frees what a second one over the same graph needs. The
    setting holds for all threads.
    """
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():  # nothing compiled, or compiling now
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
