"""The place in the user's code that a warning is to name."""

from __future__ import annotations

import contextlib
import os
import sys

import torch

_HOME = os.path.dirname(os.path.dirname(__file__))
_INTERNAL: tuple[str, ...] = tuple(
    os.path.join(folder, "")
    for folder in (
        *(os.path.join(_HOME, name) for name in ("solvers", "implicit", "models")),
        os.path.dirname(torch.__file__),
    )
)
_INTERNAL += (contextlib.__file__,)


def level_of_caller() -> int:
    """How many levels up the stack the first code lies that is neither ours nor PyTorch's, for `stacklevel=`."""
    level, frame, internal = 1, sys._getframe(1), _INTERNAL
    bridged = getattr(sys.modules.get("torchdeq"), "__file__", None)  # whose solvers may be ours
    if bridged is not None:
        internal = (*internal, os.path.join(os.path.dirname(bridged), ""))
    while frame.f_back is not None and frame.f_code.co_filename.startswith(internal):
        level, frame = level + 1, frame.f_back
    return level
