"""The buffers of a solve, and the recordings of its stretches, which read and write them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ..fused import replayed
from ..norms import Measure
from ..problem import Problem
from ..rules.rule import Solver
from .buffers import buffer_like, numbers_of, share, tensors_of
from .eager import Hold, Stretch, advance, begin
from .graphs import Called, Graph, Recording, hand_over, one_at_a_time, own_stream
from .recording import RecordingError, recording, this_thread
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
        self.tensors = tuple(buffer_like(tensor) for tensor in tensors)
        self.z, self.best = buffer_like(z), buffer_like(z)
        self.held = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        self._held_as: Tensor | None = None
        self.transfer = Transfer()
        self.steps, self.steady = 0, True
        """What the last solve took, and whether it went on as its stretches had begun."""
        self.last: Stretch | None = None
        """The last stretch of the solve; its tensors are buffers."""
        self.user: weakref.ref[object] | None = None
        """The loop of the solve that is using it; one that was interrupted may not have given it back."""
        self._problem: Problem | None = None
        self._beginning: Recording | None = None
        self._evaluation: Recording | None = None
        self._starts: dict[Hashable, Stretch] = {}
        self._met: set[Hashable] = set()
        self._recordings: dict[Hashable, Recording] = {}
        self._following: dict[tuple[Recording | None, bool, int], Recording] = {}
        """The next recording, by the last one, whether rows are held, and the number of steps."""
        self._turn = False
        self._current: Recording | None = None
        """The recording that produced the last stretch."""
        self._stream: torch.cuda.Stream | None = None
        """The stream of the last solve."""
        self._side = own_stream(self, z.device) if z.is_cuda else None
        """The stream for captures, and for products with what was captured there: those of another thread may run
        meanwhile, and must not become part of a capture."""
        self._pools: dict[bool, Any] = {}
        """Memory pools, each for recordings that never follow each other: results last until the host has read them."""

    def begin(self, z: Tensor, tensors: tuple[Tensor, ...]) -> Stretch:
        """Evaluate the problem with these tensors at z, and run the first steps."""
        if z.is_cuda:
            last, self._stream = self._stream, torch.cuda.current_stream(z.device)
            if last is not None and last != self._stream:
                memories = (tensor for start in self._starts.values() for tensor in tensors_of(start)[0])
                hand_over((self.z, self.best, self.held, *self.tensors, *memories), last, self._stream)
        self.z.copy_(z)
        for buffer, tensor in zip(self.tensors, tensors, strict=True):
            buffer.copy_(tensor)
        self._held_as = None
        if self._beginning is None:
            stretch = self._begin()  # this warms up
            self._turn = False
            self._starts.clear()  # the recording works in the buffers it makes, and has none to copy into
            self._beginning = self._record(self._begin)
            if self._beginning is None:  # what lasts must be recorded first in its pool: the solve continues without
                self.leave()
                return stretch
        return self._replayed(self._beginning)

    def adopt(self, problem: Problem, start: Stretch) -> Stretch:
        """Continue a solve of the problem that has been run without a tape, from the stretch it has reached."""
        self._problem = problem
        tensors, rebuilt = tensors_of(start)
        self.last = self._starts[numbers_of(start.memory)] = rebuilt([tensor.clone() for tensor in tensors])
        return self.last

    def end(self) -> None:
        """The end of a solve."""
        self.user = None
        if self._side is not None:  # memory of its recordings may be unmapped once this stream is idle
            self._side.wait_stream(torch.cuda.current_stream(self.z.device))

    @property
    def lent(self) -> bool:
        """Whether a solve is using it."""
        return self.user is not None and self.user() is not None

    @property
    def evaluates(self) -> bool:
        """Whether a single evaluation is recorded, or can be."""
        return self._problem is not None and (self._beginning is not None or bool(self._recordings))

    def evaluate(self, z: Tensor, last: Stretch) -> Stretch:
        """One evaluation, at z."""
        self.best.copy_(z)
        name, self.last, self._current = ("one evaluation", this_thread()), None, None
        if name not in self._met:
            self._met.add(name)
            return self._evaluated(last)
        if self._evaluation is None:
            self._evaluation = self._record(lambda: self._evaluated(last))
            if self._evaluation is None:
                return self._evaluated(last)
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
        return not hold.redirects and (self._current, hold.rows is not None, span) in self._following

    def run(self, hold: Hold, span: int) -> Stretch:
        """Run the next `span` steps; the points of the stretch before them stay valid until the stretch after them."""
        assert self.last is not None
        held = hold.rows is not None
        if hold.rows is not None and hold.rows is not self._held_as:  # copied once, as held rows do not move
            self.held.copy_(hold.rows)
            self.best.copy_(hold.best)
            self._held_as = hold.rows
        if self.knows(hold, span):
            return self._replayed(self._following[self._current, held, span])
        start, fresh = numbers_of(self.last.memory), self.last.fresh
        self._turn = not self._turn  # so that no recording follows itself
        name = (start, fresh, held, span, self._turn)
        ours = hold if hold.redirects else Hold(None, self.best, None)
        ours = ours._replace(rows=self.held if held else None)
        met = name, this_thread()  # a library makes its workspaces once per thread
        if hold.redirects or met not in self._met:
            if not hold.redirects:
                self._met.add(met)
            return self._run(self._steps(start, fresh, ours, span))
        if name not in self._recordings:
            made = self._record(lambda: self._steps(start, fresh, ours, span))
            if made is None:
                return self._run(self._steps(start, fresh, ours, span))
            self._recordings[name], made.turn = made, self._turn
        if self._current is not None:
            self._following[self._current, held, span] = self._recordings[name]
        return self._replayed(self._recordings[name])

    def _run(self, stretch: Stretch) -> Stretch:
        self.last, self._current = stretch, None
        return stretch

    def _replayed(self, recording: Recording) -> Stretch:
        self.last, self._current, self._turn = recording.replay(), recording, recording.turn
        return self.last

    def _begin(self) -> Stretch:
        with replayed():
            self._problem = self.build(*self.tensors)
            start = begin(self._problem, self.solver, self.measure, self.z, None, robust=True)
        # one buffer each: a new memory may hold the very tensors that were passed to it
        tensors, rebuilt = tensors_of(start)
        apart = [tensor.clone() if any(share(tensor, other) for other in (self.z, *tensors[:place])) else tensor
                 for place, tensor in enumerate(tensors)]  # fmt: skip
        name = numbers_of(start.memory)
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
        found, rebuilt = tensors_of(stretch)
        after = numbers_of(stretch.memory)
        model = self._starts.get(after, at)
        buffers = [
            buffer if (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype) else tensor
            for buffer, tensor in zip(tensors_of(model)[0], found, strict=True)
        ]
        apart = [
            tensor.clone() if any(share(tensor, other) for other in buffers if other is not buffer) else tensor
            for buffer, tensor in zip(buffers, found, strict=True)
        ]
        # the first point may be the image with which the stretch began
        points = [
            point.clone() if any(share(point, buffer) for buffer in buffers) else point for point in stretch.points
        ]
        for buffer, tensor in zip(buffers, apart, strict=True):
            if buffer is not tensor:
                buffer.copy_(tensor)
        end = rebuilt(buffers)
        self._starts.setdefault(after, end)
        return end._replace(points=points, norms=stretch.norms)

    def _record(self, function: Callable[[], Stretch]) -> Recording | None:
        """The recording; None while another one is being made, possibly by a thread that waits for this one.

        Raises RecordingError, with nothing run and the buffers as they were.
        """
        if not one_at_a_time.acquire(blocking=False):
            return None
        try:
            return self._made(function)
        finally:
            one_at_a_time.release()

    def _made(self, function: Callable[[], Stretch]) -> Recording:
        try:
            with recording():
                if self._side is None:
                    return Called(function)
                if self._turn not in self._pools:
                    self._pools[self._turn] = torch.cuda.graph_pool_handle()
                return Graph(function, self._pools[self._turn], self._side)
        except RecordingError:
            raise
        except Exception as error:
            raise RecordingError from error
