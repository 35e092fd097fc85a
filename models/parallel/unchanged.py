"""Refuse evaluations as one that change something: each layer's own would not be reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from implicit.pure import own_modules

from .draws import same, sources
from .holders import holders
from .likeness import UnlikeError
from .own_state import OwnState
from .writes import note, writes


class Unchanged:
    """Lets evaluations as one only read what modules keep, and draw from no generator but PyTorch's own.

    Anything else is an `UnlikeError`, and undone.

    Args:
        parts: a module and those within it, the first of those evaluated as one.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self._parts = parts
        every = [] if torch.compiler.is_compiling() else holders(parts)
        self._shared = [each for each in every if each.is_shared]
        self._sources = sources(parts, every) if every else []

    @contextmanager
    def checked(self, twin: nn.Module) -> Iterator[None]:
        """An evaluation of the module's twin."""
        if torch.compiler.is_compiling():
            yield
            return
        twins = own_modules(twin)
        parts = {id(module): part for modules in (twins, self._parts) for module, part in zip(modules, self._parts)}
        state = OwnState([*holders(twins, self._shared), *self._shared], stacked=True)
        before = [source.get() for source in self._sources]
        try:
            with state.lent():
                yield
        finally:
            pairs = zip(self._sources, before, strict=True)
            drawn = [(source, state) for source, state in pairs if not same(source.get(), state)]
            for source, state in drawn:
                source.set(state)
        if drawn:
            note(self._parts[0], True)
            raise _refusal(self._parts[0], "draws from a generator that is not PyTorch's own, once for all layers")
        unknown = [part for part in self._parts if writes(part) is None]
        for change in state.changes(compared=bool(unknown)):
            part = parts[id(change.module)]
            note(part, True)
            raise _refusal(part, f"changes its {change.name}")
        for part in unknown:
            note(part, False)


def _refusal(part: nn.Module, what: str) -> UnlikeError:
    mode, way = ("in training ", "call eval() on it, or ") if part.training else ("", "")
    return UnlikeError(f"{type(part).__name__} {mode}{what}: {way}pass batched=False")
