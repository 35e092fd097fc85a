"""Supervised segments: a layer run repeatedly, each time from where it stopped."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from implicit.depths import is_count
from implicit.layer import Layer, Z
from solvers.state import tree_map


def segments(layer: Layer[Z], *inputs: Any, count: int, z0: Z | None = None, **keywords: Any) -> Iterator[Z]:
    """The values of `count` calls of a `Looped` or `Equilibrium`, each from where the last one stopped.

    Each is differentiated by itself: the state that is carried on has no graph, so memory is that of one segment, and
    an optimiser may step between two segments. Prefer it to one long loop where every segment can be supervised, as in
    hierarchical and tiny recursive models. Source: Wang et al., "Hierarchical Reasoning Model", 2025.

        for z in segments(Looped(cell, steps=4, tracked=1), x, count=3):
            optimizer.zero_grad()
            loss(head(z), y).backward()
            optimizer.step()

    Args:
        layer: the layer whose state is carried on.
        inputs, keywords: of its cell. One that is computed with weights to be learned, such as an embedding, has a
            graph, which serves one backward pass: to differentiate each segment, pass a function without arguments
            that computes it anew, `lambda: embed(tokens)`.
        count: how many, at least 1.
        z0: start of the first segment; None: the start of the layer.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"segments: layer is a {type(layer).__name__}, not a Looped or an Equilibrium")
    if not is_count(count):
        raise ValueError(f"segments: count={count!r} must be an integer of at least 1")
    return _segments(layer, inputs, keywords, count, z0)


def _segments(
    layer: Layer[Z], inputs: tuple[Any, ...], keywords: dict[str, Any], count: int, z0: Z | None
) -> Iterator[Z]:
    for _ in range(count):
        z: Z = layer(*map(_made, inputs), z0=z0, **{name: _made(given) for name, given in keywords.items()})
        yield z
        z0 = tree_map(torch.Tensor.detach, z)


def _made(given: Any) -> Any:
    """What a function without arguments returns; anything else as it is, such as a module that the cell calls."""
    if isinstance(given, nn.Module) or not callable(given):
        return given
    try:
        inspect.signature(given).bind()
    except (TypeError, ValueError):  # it needs arguments, or has no signature
        return given
    return given()
