"""A look at autograd's graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        return None


def anchored(value: Tensor) -> Tensor:
    """The value as a point to differentiate at, inside the graph: a leaf would collect a `.grad` at every backward."""
    anchor: Tensor = _Anchor.apply(value.detach().requires_grad_())
    return anchor


def leaves(tensor: Tensor, *beyond: Tensor) -> Iterator[Tensor]:
    """The leaves that the tensor was computed from and that want gradients, except through those `beyond`."""
    if tensor.is_leaf:
        if tensor.requires_grad:
            yield tensor
        return
    seen: set[Any] = {known.grad_fn for known in beyond}
    queue: list[Any] = [tensor.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen or isinstance(node, _Anchor._backward_cls):
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        queue.extend(following for following, _ in node.next_functions)
