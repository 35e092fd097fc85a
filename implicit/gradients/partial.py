"""Partial derivatives of a function at a point, by autograd, and differentiable in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..functorch import batch_of_gradients

Function = Callable[..., Tensor]
"""`f(z, *tensors)`. Other tensors that it uses are those `captured`."""


def products(
    f: Function, z: Tensor, tensors: tuple[Tensor, ...], captured: tuple[Tensor, ...], u: Tensor
) -> tuple[Tensor, ...]:
    """`uᵀ ∂f/∂tensors` and `uᵀ ∂f/∂captured`, z held fixed."""

    def found(z: Tensor, u: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _grad((f(z, *tensors),), (*tensors, *captured), (u,), again)

    again = torch.is_grad_enabled()
    return _apart(found, (z, u, *tensors), captured)


def transposed(f: Function, z: Tensor, tensors: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """`u ↦ Jᵀu`, differentiable where gradients are on and the tensors are leaves."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            z, tensors = z.detach(), tuple(tensor.detach() for tensor in tensors)
        point = z if z.requires_grad else z.detach().requires_grad_()
        image = f(point, *tensors)
    return lambda u: _grad((image,), (point,), (u,), again)[0]


def _apart(
    function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...], captured: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`function(*tensors)`, evaluated at leaves in place of the tensors.

    z was computed from the very tensors that f uses: a derivative within the function must not run through z's history.
    """
    leaves = tuple(map(_leaf, tensors))
    with torch.enable_grad():
        values = function(*leaves)
    return _joined(values, leaves, tensors, captured) if torch.is_grad_enabled() else values


def _joined(
    values: tuple[Tensor, ...], leaves: tuple[Tensor, ...], tensors: tuple[Tensor, ...], captured: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    joined: tuple[Tensor, ...] = _Joined.apply(values, leaves, *tensors, *captured)
    return joined


class _Joined(torch.autograd.Function):
    """The values computed at leaves, as a function of the tensors that the leaves replace."""

    @staticmethod
    def forward(ctx: Any, values: tuple[Tensor, ...], leaves: tuple[Tensor, ...], *tensors: Tensor) -> Any:
        ctx.values, ctx.leaves, ctx.captured = values, leaves, tensors[len(leaves) :]
        ctx.save_for_backward(*tensors[: len(leaves)])
        ctx.set_materialize_grads(False)
        return tuple(value.detach().clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        again = torch.is_grad_enabled()
        known = [(value, grad) for value, grad in zip(ctx.values, grads) if grad is not None and value.requires_grad]
        sent = tuple(_leaf(grad) for _, grad in known)
        with torch.enable_grad():
            found = _grad([value for value, _ in known], (*ctx.leaves, *ctx.captured), sent, again)
        if again:
            leaves, tensors = (*ctx.leaves, *sent), (*ctx.saved_tensors, *(grad for _, grad in known))
            found = _joined(found, leaves, tensors, ctx.captured)
        return None, None, *found


def _leaf(tensor: Tensor) -> Tensor:
    return _alone(tensor).requires_grad_(tensor.is_floating_point() or tensor.is_complex())


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without its graph; a batch of gradients has no detach and is cloned."""
    with torch.no_grad():
        return tensor.clone() if batch_of_gradients(tensor) else tensor.detach()


def _grad(
    values: Sequence[Tensor], sources: tuple[Tensor, ...], sent: tuple[Tensor, ...], again: bool
) -> tuple[Tensor, ...]:
    """`sentᵀ ∂values/∂sources`, with a graph if it is to be differentiated `again`; zeros where there is no path."""
    wanted = [source for source in sources if source.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(wanted)
    tracked = [(value, grad) for value, grad in zip(values, sent, strict=True) if value.requires_grad]
    if wanted and tracked:
        found = torch.autograd.grad(
            [value for value, _ in tracked],
            wanted,
            [grad for _, grad in tracked],
            retain_graph=True,
            create_graph=again,
            allow_unused=True,
        )
    given = iter(found)
    gradients = (next(given) if source.requires_grad else None for source in sources)
    return tuple(
        torch.zeros_like(source) if gradient is None else gradient for source, gradient in zip(sources, gradients)
    )
