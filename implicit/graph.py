"""A look at autograd's graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from solvers.problem import Problem


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leaf: Tensor, *above: Tensor) -> Tensor:
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)


def anchored(value: Tensor, *above: Tensor) -> Tensor:
    """The value as a point to differentiate at, inside the graph: a leaf would collect a `.grad` at every backward.

    Autograd looks no further up than the point that it differentiates at. Hanging the point below the tensors `above`,
    which get no gradient from it, spares each product a walk through all that these were computed from. Whatever is
    computed from the point must be computed from these, too: a backward pass visits them.
    """
    anchor: Tensor = _Anchor.apply(value.detach().requires_grad_(), *above)
    return anchor


def computed_from(tensor: Tensor, sources: Sequence[Tensor]) -> list[bool]:
    """Which of the sources the tensor was computed from, other than through one another or before an anchored point."""
    *edges, own = (get_gradient_edge(each)[:2] if each.requires_grad else None for each in (*sources, tensor))
    sought: set[Any] = {edge for edge in edges if edge is not None}
    found: set[Any] = set()
    seen: set[Any] = set()
    queue: deque[Any] = deque(() if own is None else (own,))
    while queue and not sought <= found:
        edge = queue.popleft()
        if edge in sought:
            found.add(edge)
        elif edge[0] not in seen and not isinstance(edge[0], _Anchor._backward_cls):
            seen.add(edge[0])
            queue.extend(following for following in edge[0].next_functions if following[0] is not None)
    return [edge in found for edge in edges]


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


def refuse_hidden(name: str, problem: Problem, flat: Tensor, image: Tensor) -> None:
    """`ValueError` if f depends on z, but its image at `flat` has no graph that would tell how."""
    if image.requires_grad:
        return
    with torch.no_grad():
        moved = problem(flat.detach() + 1e-3 * (1 + flat.detach().abs()))
    if not torch.equal(moved.nan_to_num(), image.nan_to_num()):
        raise ValueError(
            f"{name}: f depends on z, but its image has no graph: take torch.no_grad, detach and NumPy out of f"
        )
