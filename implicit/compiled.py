"""Cells that torch.compile has compiled, run as they were written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def uncompiled() -> AbstractContextManager[None]:
    """Within it compiled functions and modules run as they were written: compiled code has no second derivatives."""
    return _eager() if _anything_compiled() else nullcontext()


@contextmanager
def _eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def _anything_compiled() -> bool:
    return "torch._dynamo.eval_frame" in sys.modules
