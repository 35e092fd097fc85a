"""Copies of tensors that share memory where the tensors do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from implicit.functorch import wrapped

SMALL = 2**17
"""Most bytes of a tensor that is copied for each evaluation in training. Larger ones, and those in evaluation mode, are
copied only until they are known to be read only."""


@torch.no_grad()
def copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies, of which some are views of the same memory where the tensors are."""
    with torch.inference_mode(False):  # within it, changes in place would not be counted
        memories: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            if not wrapped(tensor) and tensor.untyped_storage().nbytes():  # empty ones share an address, but no memory
                memories.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        copies: dict[int, Tensor] = {}
        for together in memories.values():
            first = max(together, key=lambda tensor: tensor.untyped_storage().nbytes())  # of two over one memory
            size = first.untyped_storage().nbytes()
            whole = [each for each in together if each.nbytes == size and each.is_contiguous() and not each._is_view()]
            if len(together) > 1 and whole and len({each.dtype for each in together}) == 1:
                copy = copies[id(whole[0])] = whole[0].clone()  # no view here either, but with views
                for each in together:
                    if each is not whole[0]:
                        copies[id(each)] = copy.as_strided(each.shape, each.stride(), each.storage_offset())
                continue
            if len(together) == 1:
                copy = copies[id(first)] = first.clone()  # no view: it may be detached in place
                if copy.stride() == first.stride() or size > max(2 * first.nbytes, SMALL):
                    continue
            bytes_ = torch.empty(0, dtype=torch.uint8, device=first.device)
            memory = bytes_.set_(first.untyped_storage()).clone()
            for tensor in together:
                items = memory[: size // tensor.itemsize * tensor.itemsize].view(tensor.dtype)
                copies[id(tensor)] = items.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        return [copies[id(tensor)] if id(tensor) in copies else tensor.clone() for tensor in tensors]


class Originals:
    """In place of copies, and of views of them, the tensors that these stood for.

    Args:
        pairs: copies and their originals.
    """

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        pairs = list(pairs)
        self._tensors = {id(copy): tensor for copy, tensor in pairs}
        self._memories = {_memory(copy): (copy, tensor) for copy, tensor in pairs if not wrapped(copy)}

    def of(self, tensor: Tensor) -> Tensor:
        """What this tensor stood for; itself if it is none of them."""
        if id(tensor) in self._tensors:
            return self._tensors[id(tensor)]
        if wrapped(tensor) or tensor.requires_grad or tensor.layout != torch.strided or not tensor.numel():
            return tensor
        copy, original = self._memories.get(_memory(tensor), (tensor, tensor))
        if copy is tensor or tensor.dtype != original.dtype or copy.stride() != original.stride():
            return tensor
        offset = tensor.storage_offset() - copy.storage_offset() + original.storage_offset()
        return original.as_strided(tensor.shape, tensor.stride(), offset)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
