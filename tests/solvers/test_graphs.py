"""CUDA graphs are captured on the state's device, one at a time, with workspaces of their own; failures leave no trace.

In place of a card stand imitations of the names of `torch.cuda` that a capture uses.
"""

import gc
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import count
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from implicit import Equilibrium
from implicit.diagnostics import host_time
from solvers import Captured, Picard
from solvers.loops import graphs
from solvers.loops.graphs import Graph, one_at_a_time, own_stream
from solvers.loops.recording import recording, this_thread
from solvers.loops.tape import Tape


class Owner:
    pass


class Handle(NamedTuple):
    device: torch.device
    cuda_stream: int


class Refused:
    """A graph whose capture has not ended."""

    ended = False

    def pool(self):
        if not self.ended:
            raise RuntimeError("without a preceding successful capture")

    def replay(self):
        pass


class Card:
    """What is current, in two devices' streams; like PyTorch's, its capture leaves its stream current if it fails."""

    version = "2.11.0"

    def __init__(self):
        self.current, self.met = "stream of cuda:0", []
        self.unfinished = set()  # pools that the allocator works in, and whether the generator is in a capture
        self.uses = Counter()  # of each pool

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        before, self.current = self.current, stream
        self.met.append((pool, stream, capture_error_mode))
        self.unfinished |= {pool, "the generator"}
        self.uses[pool] += 1
        self.inference = torch.is_inference_mode_enabled()
        try:
            yield
        except Exception:
            raise RuntimeError("the capture was invalidated") from None
        self.current = before
        self.unfinished -= {pool, "the generator"}
        graph.ended = True
        self.uses[pool] -= 1  # as if the graph were dropped

    def end_allocations(self, device, pool):
        if pool not in self.unfinished:
            raise RuntimeError("not currently recording to this pool")
        self.unfinished.remove(pool)

    def release(self, device, pool):
        self.uses[pool] -= 1


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(torch, "__version__", card.version)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Refused)
    monkeypatch.setattr(torch.cuda, "stream", card.stream)
    monkeypatch.setattr(torch.cuda, "graph", card.graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: card.met.append("cleared"), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", card.end_allocations, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", card.release, raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)  # on the card
    return card


def stream(device="cuda:0"):
    return SimpleNamespace(device=torch.device(device))


def test_each_tape_captures_on_a_stream_of_its_own_on_the_device_of_the_state(monkeypatch):
    """Products with what was captured run on that stream, possibly while another thread captures."""
    handles = count()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Handle(device, next(handles)))
    monkeypatch.setattr(graphs, "_drawn", set())
    with FakeTensorMode():
        z = torch.empty(2, 3, device="cuda:1")
        one, other = (Tape(lambda: None, (), z, Picard(), None, 4) for _ in range(2))
    assert one._side is not other._side
    assert one._side.device == z.device


def test_streams_for_captures_are_used_again_and_by_one_at_a_time(monkeypatch):
    """PyTorch's pool has 32 streams, which it hands out in turn: two tapes must not be given the same."""
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(Handle(device, len(made) % 32)) or made[-1])
    monkeypatch.setattr(graphs, "_idle", defaultdict(list))
    monkeypatch.setattr(graphs, "_drawn", set())
    one, other = torch.device("cuda:0"), torch.device("cuda:1")
    living = [Owner() for _ in range(3)]
    streams = {own_stream(owner, one) for owner in living}
    assert len(streams) == 3
    for _ in range(100):
        owner = Owner()
        assert own_stream(owner, one) not in streams
    assert len(made) <= 5
    assert own_stream(owner, other).device == other
    many = [Owner() for _ in range(28)]  # `owner` has one; the 32 go round, past streams that are in use
    assert len({own_stream(owner, one).cuda_stream for owner in many} | {each.cuda_stream for each in streams}) == 31
    assert own_stream(Owner(), one).device == one  # beyond them, one is shared


def test_only_tensors_of_a_gpu_are_handed_to_another_stream():
    noted = []
    number, state = torch.tensor(0.5, device="cpu"), SimpleNamespace(is_cuda=True, record_stream=noted.append)
    following = SimpleNamespace(wait_stream=noted.append)
    graphs.hand_over((number, state), "last", following)
    assert noted == ["last", following]


def test_memory_of_a_recording_waits_for_the_stream_of_the_solve(monkeypatch):
    noted, tape = [], Tape(lambda: None, (), torch.zeros(2, 3), Picard(), None, 4)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("the caller's", device))
    tape._side = SimpleNamespace(wait_stream=noted.append)
    tape.end()
    assert noted == [("the caller's", tape.z.device)]


def test_garbage_is_collected_again_after_recordings_of_two_threads():
    one, other = recording(), recording()
    with ThreadPoolExecutor(1) as thread:
        one.__enter__()
        thread.submit(other.__enter__).result()
        one.__exit__(None, None, None)
        assert not gc.isenabled()
        thread.submit(other.__exit__, None, None, None).result()
    assert gc.isenabled()


def test_a_later_thread_has_another_mark():
    marks = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: marks.append((this_thread(), this_thread())))
        thread.start()
        thread.join()
    assert marks[0][0] is marks[0][1]
    assert marks[0][0] is not marks[1][0]


def test_it_is_captured_on_the_stream(card):
    seen, side = [], stream("cuda:1")
    Graph(lambda: seen.append(card.current), "pool", side)
    assert seen == [side]
    assert ("pool", side, "thread_local") in card.met
    assert card.current == "stream of cuda:0"


def test_a_failure_is_the_functions_own_and_leaves_the_stream_of_the_caller(card):
    def failing():
        raise ValueError("of the cell")

    with pytest.raises(ValueError, match="of the cell"):
        Graph(failing, "pool", stream())
    assert card.current == "stream of cuda:0"
    assert not card.unfinished
    assert not card.uses["pool"]
    assert {entry[2] for entry in card.met if isinstance(entry, tuple)} == {"thread_local"}


def test_a_capture_that_ends_is_not_cleared_away_for_an_error_of_python(card, monkeypatch):
    def ending(graph, pool, stream, mode):
        return ended(graph)

    @contextmanager
    def ended(graph):
        try:
            yield
        finally:
            graph.ended = True

    monkeypatch.setattr(torch.cuda, "graph", ending)
    with pytest.raises(KeyboardInterrupt):
        Graph(interrupted, "pool", stream())
    assert card.uses["pool"] == 0


def interrupted():
    raise KeyboardInterrupt


def test_a_launch_waits_for_a_capture_in_another_thread(card, monkeypatch):
    """Up to PyTorch 2.12 a launch fails meanwhile, as the generator of random numbers is in capture."""
    graph, launched = Graph(lambda: None, "pool", stream()), []
    monkeypatch.setattr(Refused, "replay", lambda self: launched.append(one_at_a_time.locked()))
    thread = threading.Thread(target=graph.replay)
    with one_at_a_time:
        thread.start()
        thread.join(0.1)
        assert not launched
    thread.join()
    assert launched == [True]
    monkeypatch.setattr(graphs, "WAIT", 0.01)
    with one_at_a_time:  # which may wait for this thread
        graph.replay()
    assert len(launched) == 2


def test_a_diagnosis_of_a_cell_that_cannot_be_captured_leaves_no_trace(card, monkeypatch):
    calls = []

    def problem(z):
        calls.append(z)
        if len(calls) > 3:
            raise RuntimeError("operation not permitted when stream is capturing")
        return z

    quiet = SimpleNamespace(wait_stream=lambda other: None, device=torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: quiet)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: quiet)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    layer = SimpleNamespace(cell=nn.Identity(), solve=lambda *inputs, z0: None)
    look = SimpleNamespace(problem=problem, value=torch.ones(2, 3), layer=layer, inputs=(), z0=None)
    look.solution = SimpleNamespace(steps=torch.tensor([5]))
    assert host_time.step_times(look) is None
    assert len(calls) == 4
    assert card.current == "stream of cuda:0"
    assert not card.unfinished
    assert not card.uses["pool"]
    assert not one_at_a_time.locked()


def test_a_workspace_of_cublas_outlasts_no_capture(card):
    Graph(lambda: card.met.append("captured"), "pool", stream())
    assert [entry for entry in card.met if isinstance(entry, str)] == ["cleared", "captured", "cleared"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_capture_begins_outside_inference_mode_and_the_steps_keep_their_mode(card, mode):
    """PyTorch makes the seed of a device's graphs at the first capture, and writes to it before each replay."""

    def modes():
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    seen = []
    with mode():
        before = modes()
        Graph(lambda: seen.append(modes()), "pool", stream())
        assert modes() == before
    assert seen == [before]
    assert not card.inference


def test_while_another_recording_is_made_steps_run_without_one():
    """A thread that waited could wait for one that waits for it: autograd has one thread a device."""

    class Cell(nn.Linear):
        def forward(self, z, x):
            return torch.tanh(0.3 * super().forward(z) + x)

    layer = Equilibrium(Cell(4, 4), solver=Picard(), compact=False, loop=Captured(2), initial=torch.zeros_like)
    x, values = torch.randn(3, 4), []
    expected = Equilibrium(layer.cell, solver=Picard(), compact=False, initial=torch.zeros_like)(x)
    with one_at_a_time:
        values = [layer(x) for _ in range(4)]
        assert not [one for one in layer._captures._tapes.values() if one is not None and one._recordings]
    values += [layer(x) for _ in range(4)]
    assert [one for one in layer._captures._tapes.values() if one is not None and one._beginning]
    for value in values:
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
