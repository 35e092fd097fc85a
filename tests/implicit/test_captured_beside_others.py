"""Recordings and what a program shares with them: its memory, and threads that wait for each other."""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from implicit import Equilibrium, Looped
from solvers import Captured, Picard, solve
from solvers.loops import captured as captured_loop
from solvers.loops import tape

ROWS, DIM = 4, 8


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, z, x):
        return torch.tanh(0.5 * self.linear(z) + x)


def test_a_layer_that_is_moved_keeps_no_recording_of_the_old_weights():
    layer, x = Equilibrium(Cell(), loop=Captured(), compact=False), torch.randn(ROWS, DIM)
    model = nn.Sequential(layer)
    for _ in range(2):
        layer.solve(x)
    model.float()  # as it is
    assert len(layer._captures) == 1
    model.double()
    assert len(layer._captures) == 0
    for _ in range(3):
        layer.solve(x.double()).check()


def test_a_recording_that_runs_out_of_memory_leaves_none_of_its_own(monkeypatch):
    kept = []

    class Full(tape.Called):
        def __init__(self, function):
            stretch = function()
            kept.extend(map(weakref.ref, stretch.points))
            raise torch.OutOfMemoryError("CUDA out of memory")

    real = captured_loop.begin

    def begin(*arguments):
        assert sum(point() is not None for point in kept) <= 1  # the first iterate
        return real(*arguments)

    monkeypatch.setattr(tape, "Called", Full)
    monkeypatch.setattr(captured_loop, "begin", begin)
    if torch.get_default_device().type == "cuda":
        pytest.skip("there a recording is no call")
    cell, x = Cell(), torch.randn(ROWS, DIM)
    captured, expected = Equilibrium(cell, loop=Captured(), compact=False), Equilibrium(cell).solve(x).value
    torch.testing.assert_close(captured.solve(x).value, expected, rtol=1e-2, atol=1e-3)
    with pytest.warns(RuntimeWarning, match=r"OutOfMemoryError.*memory of its own.*leave some free"):
        torch.testing.assert_close(captured.solve(x).value, expected, rtol=1e-2, atol=1e-3)
    assert kept
    torch.testing.assert_close(captured.solve(x).value, expected, rtol=1e-2, atol=1e-3)


def test_a_backward_pass_in_another_thread_does_not_wait_for_the_solve_that_waits_for_it(monkeypatch):
    """As on a GPU, where it runs in a thread of the device."""
    monkeypatch.setattr("implicit.parametrized.WAIT", 0.01)
    grad, calls = torch.autograd.grad, []

    def elsewhere(*arguments, **options):
        calls.append(arguments)
        with ThreadPoolExecutor(1) as device:
            return device.submit(grad, *arguments, **options).result()

    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Looped(Split(), steps=2)

        def forward(self, z, x):
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                energy = checkpoint(lambda z: self.inner(z, z0=x).square().sum(), z, use_reentrant=False)
                (pulled,) = elsewhere(energy, z)
            return 0.1 * x - 0.05 * pulled

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = weight_norm(nn.Linear(DIM, DIM))

        def forward(self, z, x):
            return torch.tanh(0.3 * self.linear(z) + x)

    layer, x, found = Equilibrium(Energy(), solver=Picard()), torch.randn(ROWS, DIM), []
    solving = threading.Thread(target=lambda: found.append(layer.solve(x)), daemon=True)
    solving.start()
    solving.join(60)
    assert calls
    assert not solving.is_alive(), "it waits for ever"
    found[0].check()


def test_an_exception_that_the_caller_handles_keeps_its_traceback():
    class Refused(Cell):
        def forward(self, z, x):
            return super().forward(z, x) + 0.0 * solve(lambda y: 0.5 * y, torch.zeros_like(z)).value

    layer, x, handled = Equilibrium(Refused(), loop=Captured(), compact=False), torch.randn(ROWS, DIM), []

    def solve_while_handling():
        for _ in range(3):
            try:
                raise ValueError("the caller's")
            except ValueError as error:
                layer.solve(x)
                handled.append(error.__traceback__)

    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        solve_while_handling()
    assert None not in handled
