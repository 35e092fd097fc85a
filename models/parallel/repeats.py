"""Evaluations of a network that repeat one another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from implicit.functorch import transformed, version
from implicit.parametrized import Weights, one_weight, turn
from implicit.pure import every_module
from implicit.suitability import drops
from solvers.caller import level_of_caller

from .copies import SMALL
from .draws import Source, default, same, sources
from .gather import captured
from .holders import holders
from .own_state import OwnState, write
from .writes import note, writes

_told: WeakSet[nn.Module] = WeakSet()


class Repeats:
    """Lets transforms draw and update the same at every evaluation, so that sweeps approach one network.

    Each evaluation begins with what the modules kept, and the generators had, before the first one, and has the same
    parametrized weights. In the end the generators are where the last one left them, and the modules keep what it left,
    such as running statistics: nothing after an exception. Later evaluations, as in backward passes, change nothing.

    Args:
        f: a module that may draw, as dropout does, or update buffers, attributes and what these contain, as may those
            within it; or a function.
        like: a tensor on the device of what they draw.
    """

    def __init__(self, f: Callable[..., Any], like: Tensor) -> None:
        modules = every_module(f) if isinstance(f, nn.Module) else []
        self._f, self._like = f, like
        training = [module for module in modules if module.training]
        self._drops = any(map(drops, training))
        self._modules, self._training, self._draws = modules, bool(training), True
        self._is_open = False
        """Whether an evaluation may be the last one."""
        self._transformed = transformed()
        self._state: OwnState | None = None
        self._sources: list[Source] = []
        self._first: list[Any] = []
        self._advanced = 0
        self._drawn = False
        """Whether the last evaluation drew from a generator that is not PyTorch's."""
        self._weights: Weights = {}

    @contextmanager
    def call(self) -> Iterator[None]:
        """The call whose evaluations these are."""
        self._is_open = True
        with _weights_of(self._f, self._modules, self._like) as self._weights:
            try:
                yield
                self._is_open = False
                self._keep()
            except BaseException:
                self._is_open = False
                self._set(self._first[: self._advanced])
                raise

    def _keep(self) -> None:
        if self._state is None:
            return
        with turn():
            changed = {id(each.module) for each in self._state.changes(compared=self._like.is_cpu)}
            for module in self._modules:
                note(module, id(module) in changed or (self._drawn and not module.training))
            self._state.keep(unwrapped=not self._transformed)

    def warn_of_graphs(self) -> None:
        """Warn, once for all of them, that modules keep tensors whose gradient would end at their own input."""
        own = {id(parameter) for module in self._modules for parameter in module._parameters.values()}
        found = list(self._state.graphs(own)) if self._state and torch.is_grad_enabled() else []
        new = [change for change in found if change.module not in _told]
        _told.update(change.module for change in new)
        if new:
            warnings.warn(
                f"{type(new[0].module).__name__} keeps a tensor with a graph in its {new[0].name}. To a tolerance, the "
                "gradient of such a tensor ends at the module's input: where it is a part of the loss, pass sweeps=; "
                "otherwise keep it detached",
                RuntimeWarning,
                stacklevel=level_of_caller(),
            )

    @contextmanager
    def same(self, updates: bool = True, anew: bool = False) -> Iterator[None]:
        """Evaluate as in the first such block.

        Args:
            updates: whether modules may change what they keep, and draw from other generators than PyTorch's.
            anew: whether parametrized weights are computed again, as other parameters may have changed since.
        """
        if self._drops and captured(self._like):
            raise RuntimeError("sweeps over dropout cannot be captured, since each must draw the same: call eval()")
        later = self._weights and not self._is_open and not anew
        with (
            one_weight(self._f, self._weights) if later else nullcontext(),
            self._same_state() if updates else nullcontext(),
            self._same_draws(not updates),
        ):
            yield

    @contextmanager
    def _same_state(self) -> Iterator[None]:
        if torch.compiler.is_compiling():
            yield
            return
        with turn():  # no other thread's copies
            self._state = self._state or OwnState(holders(self._modules))
        with self._state.lent():
            yield
        self._state.check_restored()

    @contextmanager
    def _same_draws(self, only_default: bool) -> Iterator[None]:
        like = self._like
        if not self._draws or _draws_nothing(like) or (torch.compiler.is_compiling() and not self._drops):
            yield
            return
        if not self._sources:
            self._sources = [default(like)]
        if len(self._sources) == 1 and self._state and not (only_default or torch.compiler.is_compiling()):
            self._sources += sources(self._modules, self._state.holders)
        now = [source.get() for source in self._sources]
        self._first += now[len(self._first) :]
        if self._advanced:
            self._set(self._first)
        try:
            yield
        except BaseException:
            self._set(now)  # the transforms may be evaluated in another way
            raise
        pairs = list(zip(self._sources, self._first, strict=True))
        self._drawn = not all(same(source.get(), state) for source, state in pairs[1:])
        if not (self._training or self._advanced or self._drawn) and same(pairs[0][0].get(), pairs[0][1]):
            self._draws = False  # nor is there anything to put back, from which other threads may draw
            return
        if not self._is_open:
            self._set(now[: self._advanced])
        self._advanced = len(now)

    def _set(self, states: list[Any]) -> None:
        for source, state in zip(self._sources, states):
            source.set(state)


def _draws_nothing(like: Tensor) -> bool:
    """Whether no generator can be read, or none will be used."""
    return like.is_meta or captured(like) or (like.is_cuda and not torch.cuda.is_initialized())


@contextmanager
def _weights_of(f: Callable[..., Any], modules: Sequence[nn.Module], like: Tensor) -> Iterator[Weights]:
    """`one_weight`, which puts back, after an exception, what parametrizations changed or drew as it computed weights.

    Those that did neither last time are taken at their word in evaluation mode and, as to large tensors, in training.
    """
    made: list[Any] = [module.parametrizations for module in modules if "parametrizations" in module._modules]
    every = [part for each in made for listed in each.values() for one in listed for part in every_module(one)]
    parts = [part for part in every if part.training or writes(part, for_weight=True) is not False]
    if not parts or torch.compiler.is_compiling():
        with one_weight(f) as weights:
            yield weights
        return
    with turn():
        before = _Before(parts, like)
    try:
        with one_weight(f) as weights:
            before.note()
            yield weights
    except BaseException:
        with turn():
            before.restore()
        raise


class _Before:
    """What modules kept, and the generators had, before the modules computed weights."""

    def __init__(self, modules: Sequence[nn.Module], like: Tensor) -> None:
        self._holders = holders(modules)
        self._kept = [
            (each.module, tensor, version(tensor), tensor.detach().clone())
            for each in self._holders
            for _, tensor in each.tensors
            if not isinstance(tensor, nn.Parameter)
            and (tensor.nbytes <= SMALL or writes(each.module, for_weight=True) is not False)
        ]
        large = {id(module) for module, tensor, *_ in self._kept if tensor.nbytes > SMALL}
        self._noted = [module for module in modules if not module.training or id(module) in large]
        """Those of which it matters next time whether they change anything."""
        own = [] if _draws_nothing(like) else [default(like)]
        self._drawn = [(source, source.get()) for source in (*own, *sources(modules, self._holders, for_weight=True))]

    def _changed(self) -> list[tuple[nn.Module, Tensor, Tensor]]:
        return [
            (module, tensor, kept)
            for module, tensor, then, kept in self._kept
            if version(tensor) != then or (tensor.is_cpu and not torch.equal(tensor, kept))
        ]

    def note(self) -> None:
        """Remember which of the modules changed what they keep, or may have drawn."""
        if not self._noted:
            return
        if any(not same(source.get(), state) for source, state in self._drawn):
            changed = set(map(id, self._noted))
        else:
            changed = {id(each.module) for each in self._holders if not each.holds(each.contents)}
            changed |= {id(module) for module, *_ in self._changed()}
        for module in self._noted:
            note(module, id(module) in changed, for_weight=True)

    def restore(self) -> None:
        for holder in self._holders:
            holder.fill(holder.contents)
        for _, tensor, kept in self._changed():
            write(tensor, kept)
        for source, state in self._drawn:
            source.set(state)
