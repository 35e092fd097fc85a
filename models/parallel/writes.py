"""What is known of modules from their last evaluation: whether it changed what they keep."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

_wrote: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
"""Whether a module changed what it keeps when it was last evaluated, in training or not; if not, also whether it may
have drawn from a generator that is not PyTorch's own."""


def writes(module: nn.Module) -> bool | None:
    """Whether it changed what it keeps when it was last evaluated in its mode; None if that is not known."""
    return _wrote.get(module, {}).get(module.training)


def note(module: nn.Module, wrote: bool) -> None:
    """Remember whether an evaluation changed what the module keeps."""
    _wrote.setdefault(module, {})[module.training] = wrote
