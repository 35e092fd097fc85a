"""Whether modules are of one structure, so that their weights can be stacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class UnlikeError(TypeError):
    """Modules that cannot be evaluated as one; says why."""


def check_alike(modules: Sequence[nn.Module]) -> None:
    """`UnlikeError` unless all have equal classes, settings and shapes, no hooks, and nothing that training moves."""
    first = list(_described(modules[0]))
    for number, other in enumerate(modules[1:], start=1):
        described = list(_described(other))
        for (name, facts), (other_name, others) in zip(first, described):
            for fact in dict.fromkeys((*facts, *others)):
                one, two = facts.get(fact), others.get(fact)
                if name != other_name or not _same(one, two):
                    raise UnlikeError(
                        f"the transforms of layers 0 and {number} differ: {name or 'the transform'} has {fact} {one} "
                        f"in one and {two} in the other"
                    )
        if len(first) != len(described):
            raise UnlikeError(f"the transforms of layers 0 and {number} have different submodules")


_INTERNAL = set(nn.Module().__dict__)


def _described(module: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each submodule's name and what must agree; parametrizations count as the tensors that they make."""
    for name, part in module.named_modules():
        if "parametrizations" in name.split("."):
            continue
        if any(isinstance(value, dict) and value for key, value in part.__dict__.items() if key.endswith("_hooks")):
            raise UnlikeError(f"{name or type(part).__name__} has hooks, which are to see one layer at a time")
        if part.training and part._buffers:
            raise UnlikeError(f"{name or type(part).__name__} has buffers, which training may move: call eval() on it")
        made = part.parametrizations if parametrize.is_parametrized(part) else ()
        tensors = {**part._parameters, **{made_name: getattr(part, made_name) for made_name in made}}
        facts: dict[str, Any] = {"class": parametrize.type_before_parametrizations(part), "training": part.training}
        for key, tensor in (*tensors.items(), *part._buffers.items()):
            facts[f"{key} of shape"] = None if tensor is None else tuple(tensor.shape)
            facts[f"{key} of dtype"] = None if tensor is None else tensor.dtype
        for key, buffer in part._buffers.items():
            if buffer is not None and not buffer.is_floating_point():
                facts[key] = buffer
        hidden = _INTERNAL | {f"_{made_name}" for made_name in made}
        facts.update((key, value) for key, value in part.__dict__.items() if key not in hidden)
        yield name, facts


def _same(one: Any, two: Any) -> bool:
    if one is two:
        return True
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    try:
        return type(one) is type(two) and bool(one == two)
    except Exception:  # settings whose equality is no truth value count as different
        return False
