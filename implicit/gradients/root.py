"""The root of a function, differentiable to any order: the transformed way through a solve, and part of the pure one.

Under the transforms of torch.func, `root` solves and differentiates; under autograd, `pullback` serves `higher`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..functorch import transformed
from . import partial
from .partial import Function

Linear = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""`(product, shift) ↦ u` with `u = product(u) + shift`, untracked."""


def root(f: Function, find: Function, linear: Linear, *tensors: Tensor, captured: tuple[Tensor, ...] = ()) -> Tensor:
    """`z = f(z, *tensors)`, by the implicit function theorem as often as it is differentiated.

    Args:
        f: whatever it uses besides the tensors and those captured counts as a constant.
        find: `find(*tensors)` is the root, found without a graph.
        linear: solves the linear equations of the derivatives.
        captured: other tensors that f uses; none under a transform.
    """
    value: Tensor = _Root.apply(f, find, linear, len(captured), *tensors, *captured)
    return value


def pullback(
    f: Function,
    linear: Linear,
    z: Tensor,
    tensors: tuple[Tensor, ...],
    grad: Tensor,
    captured: tuple[Tensor, ...] = (),
) -> tuple[Tensor, ...]:
    """`gᵀ ∂z/∂tensors` at the root z, likewise for those captured: pull the root u of `u = Jᵀu + g` back through f."""
    # autograd supports cells that the transforms do not: with hooks, checkpoints, old-style functions
    reverse = _reverse if transformed() else partial.transposed

    def transposed(u: Tensor, shift: Tensor, z: Tensor, *tensors: Tensor) -> Tensor:
        return reverse(f, z, tensors)(u) + shift

    def find(shift: Tensor, z: Tensor, *tensors: Tensor) -> Tensor:
        return linear(reverse(f, z, tensors), shift)

    u = root(transposed, find, linear, grad, z, *tensors, captured=captured)
    return _products(f, z, tensors, u) if transformed() else partial.products(f, z, tensors, captured, u)


def pushforward(f: Function, linear: Linear, z: Tensor, tensors: tuple[Tensor, ...], tangents: list[Tensor]) -> Tensor:
    """`∂z/∂tensors · tangents` at the root z: `v = Jv + ∂f/∂tensors · tangents`."""
    # forward mode, by reverse mode twice: it also serves cells without forward-mode rules
    (shift,) = torch.func.vjp(lambda u: _products(f, z, tensors, u), torch.zeros_like(z))[1](tuple(tangents))

    def direct(v: Tensor, shift: Tensor, z: Tensor, *tensors: Tensor) -> Tensor:
        return _forward(f, z, tensors)(v) + shift

    def find(shift: Tensor, z: Tensor, *tensors: Tensor) -> Tensor:
        return linear(_forward(f, z, tensors), shift)

    return root(direct, find, linear, shift, z, *tensors)


def _products(f: Function, z: Tensor, tensors: tuple[Tensor, ...], u: Tensor) -> tuple[Tensor, ...]:
    """`uᵀ ∂f/∂tensors`; not by `vjp`, which fails, once its level has ended, on tensors that f does not use."""
    everything = tuple(range(len(tensors)))
    gradients: tuple[Tensor, ...] = torch.func.grad(lambda *tensors: (f(z, *tensors) * u).sum(), everything)(*tensors)
    return gradients


def _reverse(f: Function, z: Tensor, tensors: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """`u ↦ Jᵀu`."""
    pull = torch.func.vjp(lambda z: f(z, *tensors) + 0 * z, z)[1]  # `0 * z` likewise, in case f does not use z
    return lambda u: pull(u)[0]


def _forward(f: Function, z: Tensor, tensors: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """`v ↦ Jv`."""
    push = torch.func.vjp(_reverse(f, z, tensors), torch.zeros_like(z))[1]
    return lambda v: push(v)[0]


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(f: Function, find: Function, linear: Linear, captured: int, *tensors: Tensor) -> Tensor:
        with torch.no_grad():
            return find(*tensors[: len(tensors) - captured])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.f, _, ctx.linear, count, *tensors = inputs
        known = len(tensors) - count
        ctx.captured = tuple(tensors[known:])
        ctx.save_for_backward(output, *tensors[:known])
        ctx.save_for_forward(output, *tensors[:known])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        z, *tensors = ctx.saved_tensors
        found = pullback(ctx.f, ctx.linear, z, tuple(tensors), grads[0], ctx.captured)
        return (None, None, None, None, *found)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(True):  # PyTorch turns it off here, for outer levels as well
            z, *tensors = (forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors)
            tangents = [
                torch.zeros_like(tensor) if tangent is None else tangent
                for tensor, tangent in zip(tensors, grad_inputs[4:], strict=True)
            ]
            return pushforward(ctx.f, ctx.linear, z, tuple(tensors), tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        """One root for each entry of the mapped dim, in turn: they may differ in parameters, too."""
        roots = [
            _Root.apply(*(x if dim is None else x.select(dim, entry) for x, dim in zip(inputs, in_dims, strict=True)))
            for entry in range(info.batch_size)
        ]
        return torch.stack(roots), 0
