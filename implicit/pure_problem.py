"""A problem as a pure function of its state and of every tensor that the toolkit knows."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from solvers.loops.recording import recorded
from solvers.problem import Problem
from solvers.state import tree_leaves, tree_map

from .functorch import transformed, version
from .keys import modules_key, tensor_key_on, value_key, version_key
from .pure import Known, PureModule
from .reads import Watched
from .suitability import warn_of_change
from .torch_state import within_modes

ROUNDINGS = 4
"""Rounding units of all its tensors by which f may change when another kernel computes it."""


def _size(tensor: Tensor) -> float:
    """The norm of its finite entries; 0 for a sparse tensor."""
    if tensor.layout != torch.strided:
        return 0.0
    finite = tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)
    return float(torch.linalg.vector_norm(torch.where(finite.isfinite(), finite, 0)))


class PureProblem:
    """`f(z, *tensors)` on flat states, where `tensors` stand for the arguments, parameters and buffers of a problem.

    A parametrized weight counts as a tensor of its own, as it was when this was built. The function evaluates a shallow
    twin of the module, which affects neither the module nor other threads, and later changes to the module have no
    effect.
    """

    @classmethod
    def of(cls, problem: Problem) -> tuple[PureProblem, tuple[Tensor, ...]]:
        """The function, which keeps none of the tensors alive, and the tensors."""
        known = Known()
        return cls(problem, known), known.tensors

    def __init__(self, problem: Problem, known: Known) -> None:
        self.problem = copy.copy(problem)
        self.problem.source, self.problem.recordable = None, False  # recordings are of f itself, not of its twins
        self.problem.advice = None
        self.problem.args = tree_map(known.placed, problem.args)
        self.module = PureModule(problem.f, known) if isinstance(problem.f, nn.Module) else None
        self.watched = False
        """Whether evaluations raise RecordingError where f reads other tensors than these."""
        self.relied_on: Hashable = None
        """What the function relied on besides its tensors when this was built, for recordings; None: not noted."""

    def note(self) -> None:
        """Note what the function relies on, for `key`."""
        with suppress(Exception):  # of a container that holds itself, or of a user's object
            self.relied_on = None if within_modes() else self._relied_on()

    def key(self) -> Hashable:
        """The key of its modules; None unless what was noted is as it was.

        That is, attributes, modes, hooks, and tensors that places do not cover.
        """
        if self.relied_on is None:
            return None
        now = self._relied_on()
        return now[0] if self.relied_on == now else None

    def confirm(self, image: Tensor, again: Tensor, tensors: Sequence[Tensor]) -> None:
        """Warn if f, evaluated again at the same point and of these tensors, has another value than before."""
        if self.problem.told or transformed() or recorded() or torch.compiler.is_compiling():
            return
        image, again = image.detach().double(), again.detach().double()
        bound = self.problem.spread * torch.linalg.vector_norm(image, dim=1)
        change = torch.linalg.vector_norm(again - image, dim=1)
        whole = image.isfinite().all(dim=1)
        if bool((whole & ~(change <= bound)).any()):
            # another kernel may round otherwise what f computes from its tensors, beside which the image may be small
            given = max(map(_size, tensors), default=0.0)
            if bool((whole & ~(change <= bound + ROUNDINGS * self.problem.rounding * given)).any()):
                warn_of_change()

    def _relied_on(self) -> tuple[Hashable, Hashable]:
        """The key of its modules, and how often their tensors have been written to, with the arguments' key."""
        tensor_key, versions = tensor_key_on(self.problem.layout.device), []

        def counted(tensor: Tensor) -> Hashable:
            versions.append(version(tensor))
            return tensor_key(tensor)

        modules = () if self.module is None else modules_key(self.module, counted)
        return modules, (*versions, value_key(tree_leaves(self.problem.args), version_key))

    def without_captures(self) -> PureProblem:
        """The same, for a recording, which must not reference the layer's recordings."""
        changed = self._copy()
        changed.problem.captures = None
        return changed

    def with_args(self, change: Callable[[int, Any], Any]) -> PureProblem:
        """The same with `change(number, leaf)` for each leaf of the arguments, where tensors appear as their places."""
        changed, places = self._copy(), itertools.count()
        changed.problem.args = tree_map(lambda leaf: change(next(places), leaf), self.problem.args)
        return changed

    def _copy(self) -> PureProblem:
        copied = copy.copy(self)
        copied.problem = copy.copy(self.problem)
        return copied

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return self.at(*tensors)(z)

    def at(self, *tensors: Tensor) -> Problem:
        """The problem with these tensors."""
        problem = copy.copy(self.problem)
        problem.args = tree_map(Known.filling(tensors), problem.args)
        if self.module is not None:
            twin = self.module.twin(tensors)
            problem.f = Watched(twin) if self.watched else twin
        return problem
