"""What the rest needs of `torch.compile`, imported only by those who compile: that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run as it is between the graphs of a compiled caller: a solve's length depends on its data."""
    apart = _disable_dynamo(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = (apart if torch.compiler.is_compiling() else function)(*args, **kwargs)
        return result

    return call


@cache
def as_one_graph(function: Callable[P, R]) -> Callable[P, R]:
    """The function compiled, with fixed shapes and every tensor an input."""
    compiled: Callable[P, R] = torch.compile(function, dynamic=False, fullgraph=True)
    return compiled
