"""What a module reads: a recording is right for other tensors only if it reads nothing else than is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from solvers.loops.recording import RecordingError, recording
from solvers.state import tree_leaves

from .keys import attributes
from .pure import own_modules
from .references import remedy

_DEEP = 8
"""Largest number of containers and objects around a tensor that counts as an attribute."""
_CONTAINERS = tuple, list, deque, set, frozenset
_NEW = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default}
"""Operations on what `torch.tensor` has just made."""


class Watched:
    """A module that raises RecordingError where it reads a tensor that is neither an input nor an attribute of it.

    Each call evaluates it twice: as it is, and operation by operation, with a product with its Jacobian where gradients
    are on.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, z: Any, *inputs: Any) -> Any:
        parts = own_modules(self.module)
        known = [
            *tree_leaves((z, inputs)),
            *_tensors(inputs),
            *(each for part in parts for each in _tensors(vars(part))),
        ]
        torch.clear_autocast_cache()  # casts made outside must not be read inside, nor the reverse
        # a solve within it is refused, as in the recording itself; code of torch.compile shows no operations
        with recording(), torch.compiler.set_stance("force_eager"), _Reading(known, remedy(parts)):
            image = [leaf for leaf in tree_leaves(self.module(z, *inputs)) if leaf.requires_grad]
            if image and torch.is_grad_enabled():
                torch.autograd.grad(image, tree_leaves(z), list(map(torch.ones_like, image)), allow_unused=True)
        torch.clear_autocast_cache()
        return self.module(z, *inputs)


class _Reading(TorchDispatchMode):
    """Raises RecordingError where an operation reads a tensor that is neither known nor computed here."""

    supports_higher_order_operators = True

    def __init__(self, known: Iterable[Any], remedy: str | None) -> None:
        super().__init__()
        self._known: set[int] = set()
        self._remedy = remedy
        self._learn(known)

    def _learn(self, values: Iterable[Any]) -> None:
        self._known.update(place for value in values if isinstance(value, Tensor) for place in _memory(value))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in _NEW:
            for tensor in tree_leaves((args, kwargs)):
                if not isinstance(tensor, Tensor) or tensor.is_nested:  # PyTorch makes jagged ones from a global one
                    continue
                if tensor._is_zerotensor():  # whose backward pass ends the process where operations are watched
                    raise RecordingError(
                        "it takes derivatives in forward mode that are zero. Take them in reverse mode: "
                        "torch.func.jacrev(torch.func.grad(…)) in place of hessian"
                    )
                if not self._known.issuperset(_memory(tensor)):
                    shape = "×".join(map(str, tensor.shape)) or "one number"
                    raise RecordingError(
                        f"it reads a tensor ({shape}) that is neither an input nor an attribute of its modules"
                        + (f": {self._remedy}" if self._remedy else ". Make it an input or a buffer")
                    )
        result = function(*args, **kwargs)
        self._learn(tree_leaves(result))
        return result


def _tensors(value: Any, deep: int = _DEEP) -> Iterator[Tensor]:
    """The tensors in containers and attributes of objects, but not those of modules."""
    if isinstance(value, Tensor):
        yield value
    elif deep and not isinstance(value, nn.Module):
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, _CONTAINERS) else ()
        for each in (*items, *attributes(value).values()):
            yield from _tensors(each, deep - 1)


def _memory(tensor: Tensor) -> list[int]:
    """Where its values lie; those of a wrapper are in the tensors within."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        inside = (getattr(tensor, name) for name in names)
        return [place for each in inside if isinstance(each, Tensor) for place in _memory(each)]
    if not tensor.numel():
        return []
    try:
        storage = tensor.untyped_storage()
        return [storage.data_ptr() or storage._cdata]
    except (RuntimeError, NotImplementedError):  # sparse
        return [id(tensor)]
