"""What is known of modules from their last evaluation: whether it changed what they keep."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

_wrote: WeakKeyDictionary[nn.Module, dict[tuple[bool, bool], bool]] = WeakKeyDictionary()
"""Whether a module changed what it keeps when it was last evaluated, in training or not, for a weight or not; if not
in training, also whether it may have drawn from a generator that is not PyTorch's own."""


def writes(module: nn.Module, for_weight: bool = False) -> bool | None:
    """Whether it changed what it keeps when it was last evaluated in its mode; None if that is not known.

    Args:
        module: any.
        for_weight: whether it was evaluated as a parametrization, before the layers.
    """
    return _wrote.get(module, {}).get((module.training, for_weight))


def note(module: nn.Module, wrote: bool, for_weight: bool = False) -> None:
    """Remember whether an evaluation changed what the module keeps."""
    _wrote.setdefault(module, {})[module.training, for_weight] = wrote
