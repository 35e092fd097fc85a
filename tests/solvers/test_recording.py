"""CUDA graphs are captured on the state's device, one at a time, with workspaces of their own; failures leave no trace.

In place of a card stand imitations of the names of `torch.cuda` that a capture uses.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from implicit import Equilibrium
from solvers import Captured, Picard
from solvers.loops import tape
from solvers.loops.recording import Graph
from solvers.loops.tape import Tape


class Card:
    """What is current, in two devices' streams; like PyTorch's, its capture leaves its stream current if it fails."""

    def __init__(self):
        self.current, self.met = "stream of cuda:0", []
        self.unfinished = set()  # pools that the allocator works in, and whether the generator is in a capture

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
        self.inference = torch.is_inference_mode_enabled()
        try:
            yield
        except Exception:
            raise RuntimeError("the capture was invalidated") from None
        self.current = before
        self.unfinished -= {pool, "the generator"}

    def end_allocations(self, device, pool):
        if pool not in self.unfinished:
            raise RuntimeError("not currently recording to this pool")
        self.unfinished.remove(pool)


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "stream", card.stream)
    monkeypatch.setattr(torch.cuda, "graph", card.graph)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: card.met.append("cleared"), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", card.end_allocations, raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)  # on the card
    return card


def stream(device="cuda:0"):
    return SimpleNamespace(device=torch.device(device))


def test_each_tape_captures_on_a_stream_of_its_own_on_the_device_of_the_state(monkeypatch):
    """Products with what was captured run on that stream, possibly while another thread captures."""
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    with FakeTensorMode():
        z = torch.empty(2, 3, device="cuda:1")
        one, other = (Tape(lambda: None, (), z, Picard(), None, 4) for _ in range(2))
    assert one._side is not other._side
    assert one._side.device == z.device


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
    with tape._one_at_a_time:
        values = [layer(x) for _ in range(4)]
        assert not [one for one in layer._captures._tapes.values() if one is not None and one._recordings]
    values += [layer(x) for _ in range(4)]
    assert [one for one in layer._captures._tapes.values() if one is not None and one._beginning]
    for value in values:
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
