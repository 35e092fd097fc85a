"""A solve within a compiled caller."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run as it is between the graphs of a compiled caller: a solve's length depends on its data."""
    apart = _disable_dynamo(function)  # which imports the compiler when first called: that takes seconds

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = (apart if torch.compiler.is_compiling() else function)(*args, **kwargs)
        return result

    return call
