"""Weights of many layers as one tensor, without copying them at every evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from implicit.functorch import batched, transformed


def captured(tensor: Tensor) -> bool:
    """Whether operations on it are recorded now in a CUDA graph, and not run."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def unread(tensor: Tensor) -> bool:
    """Whether no value of it can be read now."""
    return tensor.is_meta or isinstance(tensor, FakeTensor) or captured(tensor) or batched(tensor)


def gathered(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors stacked along a new dim 0, with the graph of each.

    The first call moves parameters into one block of memory, in which each becomes a view; later calls copy nothing.
    For optimisers, `state_dict` and in-place changes, the parameters stay what they are.
    """
    plain = set(map(type, tensors)) == {nn.Parameter} and not tensors[0].is_inference()  # others have their classes
    if not plain or transformed() or torch.compiler.is_compiling():
        return torch.stack(list(tensors))
    block = _block(tensors)
    if block is None and not _movable(tensors):
        return torch.stack(list(tensors))
    if block is None:
        with torch.inference_mode(False), torch.no_grad():
            block = torch.stack([tensor.detach() for tensor in tensors])
            for tensor, part in zip(tensors, block.unbind(), strict=True):
                tensor.data = part
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        whole: Tensor = _Gathered.apply(block, *tensors)
        return whole
    return block


def _movable(tensors: Sequence[Tensor]) -> bool:
    """Whether all are distinct tensors of one dtype and device, each in memory of its own that can be read now."""
    return (
        len(set(map(id, tensors))) == len(tensors)
        and len({(tensor.dtype, tensor.device) for tensor in tensors}) == 1
        # in a capture, moved parameters would lie in memory that nothing has been copied to
        and not (unread(tensors[0]) or any(map(_belongs_elsewhere, tensors)))
    )


def _belongs_elsewhere(tensor: Tensor) -> bool:
    """Whether its memory is that of other processes, too, or part of a larger piece, such as all parameters in one."""
    in_part = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
    return in_part or (tensor.is_cpu and tensor.is_shared())


def _block(tensors: Sequence[Tensor]) -> Tensor | None:
    """The block in which the tensors lie one after the other; None if they do not."""
    first = tensors[0]
    length = first.numel() * first.element_size()
    start = first.data_ptr()
    storage = first.untyped_storage()
    if storage.nbytes() < (first.storage_offset() * first.element_size()) + len(tensors) * length:
        return None
    places = range(start, start + len(tensors) * length, length) if length else [start] * len(tensors)
    if list(map(Tensor.data_ptr, tensors)) != list(places) or not all(map(Tensor.is_contiguous, tensors)):
        return None
    if tensors[-1].untyped_storage().data_ptr() != storage.data_ptr():
        return None
    with torch.no_grad():
        return first.detach().as_strided((len(tensors), *first.shape), (first.numel(), *first.stride()))


class _Gathered(torch.autograd.Function):
    """A block with the graph of its parts."""

    @staticmethod
    def forward(ctx: Any, block: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return block.view_as(block)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises if a part has changed since: the block does not count changes of its parts
        return (None, *grads[0].unbind())
