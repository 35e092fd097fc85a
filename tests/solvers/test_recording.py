"""CUDA graphs are captured on the state's device, one at a time, and a failure leaves the caller's stream current.

In place of a card stand imitations of the names of `torch.cuda` that a capture uses.
"""

import threading
import time
from contextlib import contextmanager

import pytest
import torch

from solvers.loops import recording
from solvers.loops.recording import Graph


class Card:
    """What is current, in two devices' streams; like PyTorch's, its capture leaves its stream current if it fails."""

    def __init__(self):
        self.current, self.met, self.capturing = "stream of cuda:0", [], 0

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        before, self.current = self.current, stream
        self.met.append((pool, stream, capture_error_mode))
        self.capturing += 1
        try:
            yield
        except Exception:
            raise RuntimeError("the capture was invalidated") from None
        finally:
            self.capturing -= 1
        self.current = before


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "stream", card.stream)
    monkeypatch.setattr(torch.cuda, "graph", card.graph)
    monkeypatch.setattr(recording, "_stream", lambda device: f"stream for captures on {device}")
    return card


def test_it_is_captured_on_the_device_of_the_state(card):
    seen = []
    Graph(lambda: seen.append(card.current), "pool", torch.device("cuda:1"))
    assert seen == ["stream for captures on cuda:1"]
    assert card.met == [("pool", "stream for captures on cuda:1", "thread_local")]
    assert card.current == "stream of cuda:0"


def test_a_failure_is_the_functions_own_and_leaves_the_stream_of_the_caller(card):
    def failing():
        raise ValueError("of the cell")

    with pytest.raises(ValueError, match="of the cell"):
        Graph(failing, "pool", torch.device("cuda:0"))
    assert card.current == "stream of cuda:0"


def test_threads_take_turns(card):
    at_once = []

    def slow():
        at_once.append(card.capturing)
        time.sleep(0.05)

    threads = [threading.Thread(target=Graph, args=(slow, "pool", torch.device("cuda:0"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == [1] * 4
