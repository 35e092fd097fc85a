"""The buffers of a solve, and the recordings of its stretches, which read and write them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import optree
import torch
from torch import Tensor

from ..fused import replayed
from ..norms import Measure
from ..problem import Problem
from ..rules.rule import Solver
from .eager import Hold, Stretch, advance, begin, recording
from .recording import Called, Graph, Recording
from .transfer import Transfer


class Tape:
    """A solve that reads from buffers and writes to the same buffers.

    Besides the buffers, a stretch depends on the numbers in the solver's memory, such as how far it is filled. These
    identify its recording. When a stretch first occurs, it is run, which also warms up the libraries that it calls;
    when it occurs again, it is recorded.

    Args:
        build: makes the problem from the tensors that change.
        tensors, z: these tensors, and the first iterate; the buffers have their shapes.
        solver, measure, count: those of the first stretch, `count` being its number of steps.
    """

    def __init__(
        self,
        build: Callable[..., Problem],
        tensors: tuple[Tensor, ...],
        z: Tensor,
        solver: Solver,
        measure: Measure,
        count: int,
    ) -> None:
        self.build, self.solver, self.measure, self.count = build, solver, measure, count
        self.tensors = tuple(_buffer(tensor) for tensor in tensors)
        self.z, self.best = _buffer(z), _buffer(z)
        self.held = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        self._held_as: Tensor | None = None
        self.transfer = Transfer()
        self.steps, self.steady = 0, True
        """What the last solve took, and whether it went on as its stretches had begun."""
        self.last: Stretch | None = None
        """The last stretch of the solve; its tensors are buffers."""
        self.lent = False
        """Whether a solve is using it."""
        self.recording = False
        """Whether a recording is being made, during which nothing is run."""
        self._problem: Problem | None = None
        self._beginning: Recording | None = None
        self._evaluation: Recording | None = None
        self._starts: dict[Hashable, Stretch] = {}
        self._met: set[Hashable] = set()
        self._recordings: dict[Hashable, Recording] = {}
        self._turn = False
        self._current: Recording | None = None
        """The recording that produced the last stretch."""
        self._stream: torch.cuda.Stream | None = None
        """The stream of the last solve."""
        self._pools: dict[bool, Any] = {}
        """Memory pools, each for recordings that never follow each other: results last until the host has read them."""

    def begin(self, z: Tensor, tensors: tuple[Tensor, ...]) -> Stretch:
        """Evaluate the problem with these tensors at z, and run the first steps."""
        if z.is_cuda:
            last, self._stream = self._stream, torch.cuda.current_stream(z.device)
            if last is not None and last != self._stream:
                self._stream.wait_stream(last)  # which may still work in the buffers
        self.z.copy_(z)
        for buffer, tensor in zip(self.tensors, tensors, strict=True):
            buffer.copy_(tensor)
        if self._beginning is None:
            self._begin()  # this warms up
            self._turn = False
            self._beginning = self._record(self._begin)
        self._held_as = None
        return self._replayed(self._beginning)

    def adopt(self, problem: Problem, start: Stretch) -> Stretch:
        """Continue a solve of the problem that has been run without a tape, from the stretch it has reached."""
        self._problem = problem
        tensors, rebuilt = _tensors(start)
        self.last = self._starts[_numbers(start.memory)] = rebuilt([tensor.clone() for tensor in tensors])
        return self.last

    @property
    def evaluates(self) -> bool:
        """Whether a single evaluation is recorded, or can be."""
        return self._problem is not None and (self._beginning is not None or bool(self._recordings))

    def evaluate(self, z: Tensor, last: Stretch) -> Stretch:
        """One evaluation, at z."""
        self.best.copy_(z)
        name, self.last, self._current = ("one evaluation", threading.get_ident()), None, None
        if name not in self._met:
            self._met.add(name)
            return self._evaluated(last)
        if self._evaluation is None:
            self._evaluation = self._record(lambda: self._evaluated(last))
        return self._evaluation.replay()._replace(points=[z], memory=last.memory)

    def _evaluated(self, last: Stretch) -> Stretch:
        assert self._problem is not None
        with replayed():
            image, residual, norms = self._problem.measured(self.best, self.best, self.measure, robust=False)
        return last._replace(points=[self.best], norms=norms, image=image, residual=residual, exact=False)

    def leave(self) -> None:
        """Forget the position in the solve, which continues elsewhere."""
        self.last = self._current = None

    def knows(self, hold: Hold, span: int) -> bool:
        """Whether the next steps are recorded."""
        known = self._current is not None and (hold.rows is not None, span) in self._current.following
        return known and hold.restart is None

    def run(self, hold: Hold, span: int) -> Stretch:
        """Run the next `span` steps; the points of the stretch before them stay valid until the stretch after them."""
        assert self.last is not None
        held = hold.rows is not None
        if hold.rows is not None and hold.rows is not self._held_as:  # copied once, as held rows do not move
            self.held.copy_(hold.rows)
            self.best.copy_(hold.best)
            self._held_as = hold.rows
        if self._current is not None and self.knows(hold, span):
            return self._replayed(self._current.following[held, span])
        start, fresh = _numbers(self.last.memory), self.last.fresh
        self._turn = not self._turn  # so that no recording follows itself
        name = (start, fresh, held, span, self._turn)
        ours = Hold(self.held if held else None, self.best, hold.restart)
        met = name, threading.get_ident()  # a library makes its workspaces once per thread
        if hold.restart is not None or met not in self._met:
            self.last, self._current = self._steps(start, fresh, ours, span), None
            if hold.restart is None:
                self._met.add(met)
            return self.last
        if name not in self._recordings:
            self._recordings[name] = self._record(lambda: self._steps(start, fresh, ours, span))
            self._recordings[name].turn = self._turn
        if self._current is not None:
            self._current.following[held, span] = self._recordings[name]
        return self._replayed(self._recordings[name])

    def _replayed(self, recording: Recording) -> Stretch:
        self.last, self._current, self._turn = recording.replay(), recording, recording.turn
        return self.last

    def _begin(self) -> Stretch:
        with replayed():
            self._problem = self.build(*self.tensors)
            start = begin(self._problem, self.solver, self.measure, self.z, None, robust=True)
        # one buffer each: a new memory may hold the very tensors that were passed to it
        tensors, rebuilt = _tensors(start)
        apart = [tensor.clone() if any(_shares(tensor, other) for other in (self.z, *tensors[:place])) else tensor
                 for place, tensor in enumerate(tensors)]  # fmt: skip
        name = _numbers(start.memory)
        self._starts[name] = rebuilt(apart)
        stretch = self._steps(name, True, Hold(None, self.best, None), self.count)
        points, norms = [self.z, *stretch.points], torch.cat((start.norms, stretch.norms))
        return stretch._replace(points=points, norms=norms)

    def _steps(self, start: Hashable, fresh: bool, hold: Hold, span: int) -> Stretch:
        """Run steps from the buffers of one memory to those of the memory after them."""
        assert self._problem is not None
        at = self._starts[start]._replace(fresh=fresh)
        with replayed():
            stretch = advance(self._problem, self.solver, self.measure, at, span, hold, robust=True)
        found, rebuilt = _tensors(stretch)
        after = _numbers(stretch.memory)
        model = self._starts.get(after, at)
        buffers = [
            buffer if (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype) else tensor
            for buffer, tensor in zip(_tensors(model)[0], found, strict=True)
        ]
        apart = [
            tensor.clone() if any(_shares(tensor, other) for other in buffers if other is not buffer) else tensor
            for buffer, tensor in zip(buffers, found, strict=True)
        ]
        # the first point may be the image with which the stretch began
        points = [
            point.clone() if any(_shares(point, buffer) for buffer in buffers) else point for point in stretch.points
        ]
        for buffer, tensor in zip(buffers, apart, strict=True):
            if buffer is not tensor:
                buffer.copy_(tensor)
        end = rebuilt(buffers)
        self._starts.setdefault(after, end)
        return end._replace(points=points, norms=stretch.norms)

    def _record(self, function: Callable[[], Stretch]) -> Recording:
        self.recording = True
        with recording():
            if self.z.device.type == "cuda":
                if self._turn not in self._pools:
                    self._pools[self._turn] = torch.cuda.graph_pool_handle()
                made: Recording = Graph(function, self._pools[self._turn], self.z.device)
            else:
                made = Called(function)
        self.recording = False
        return made


def _buffer(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format)


def _tensors(stretch: Stretch) -> tuple[list[Tensor], Callable[[list[Tensor]], Stretch]]:
    """The tensors of a stretch (last point, image, residual, memory), and a function that rebuilds it from others."""
    state = (stretch.points[-1], stretch.image, stretch.residual, stretch.memory)
    flattened: Any = optree.tree_flatten(state, none_is_leaf=True)  # type: ignore[arg-type]
    leaves, structure = flattened
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def rebuilt(tensors: list[Tensor]) -> Stretch:
        replaced: list[Any] = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            replaced[place] = tensor
        again: Any = optree.tree_unflatten(structure, replaced)
        point, image, residual, memory = again
        return Stretch([point], stretch.norms, image, residual, memory, stretch.fresh, stretch.exact)

    return [leaves[place] for place in places], rebuilt


def _numbers(memory: Any) -> Hashable:
    """The structure of a memory, what it holds besides tensors, and the shapes of its tensors."""
    leaves, structure = optree.tree_flatten(memory, none_is_leaf=True)
    return structure, tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves)


def _shares(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
