"""Questions about PyTorch's function transforms that only its private interface answers, kept in one place.

`vmap`, `grad` and `jvp` of torch.func, forward-mode differentiation, and the older vmap behind `is_grads_batched=True`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is under way."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def only_mapped() -> bool:
    """Whether the transforms under way, if any, are all vmap."""
    if forward_ad._current_level >= 0:
        return False
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return all(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)


def followed(tensor: Tensor) -> bool:
    """Whether a transform, or autograd, tracks the tensor."""
    wrapping = torch._C._functorch
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    if tensor.requires_grad or wrapping.is_batchedtensor(tensor):
        return True
    return wrapped(tensor) and followed(wrapping.get_unwrapped(tensor))


def wrapped(tensor: Tensor) -> bool:
    """Whether the tensor stands for another one within a transform."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def innermost(tensor: Tensor) -> Tensor:
    """The tensor that it stands for, whatever the number of transforms."""
    return innermost(torch._C._functorch.get_unwrapped(tensor)) if wrapped(tensor) else tensor


def version(tensor: Tensor | None) -> int:
    """The number of changes in place that have been counted; 0 where none are."""
    if tensor is None or torch.compiler.is_compiling():
        return 0
    tensor = innermost(tensor)
    return 0 if tensor.is_inference() else tensor._version


def batched(tensor: Tensor) -> bool:
    """Whether the tensor is a batch within vmap."""
    wrapping = torch._C._functorch
    if wrapping.is_batchedtensor(tensor):
        return True
    return wrapped(tensor) and batched(wrapping.get_unwrapped(tensor))


def batch_of_gradients(tensor: Tensor) -> bool:
    """Whether the tensor is the batch of a backward pass with `is_grads_batched=True`."""
    return bool(torch._C._functorch.is_legacy_batchedtensor(tensor))


def each_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` of each entry of such a batch, as a batch: its vmap has no rules for autograd functions."""
    if not batch_of_gradients(x):
        return function(x)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    found = [each_gradient(function, entry) for entry in torch._remove_batch_dim(x, level, 1, 0)]
    mapped: Tensor = torch._add_batch_dim(torch.stack(found), 0, level)
    return mapped
