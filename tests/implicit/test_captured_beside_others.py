"""Recordings and what a program shares with them: its memory, and threads that wait for each other."""

import os
import signal
import threading
import time
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from implicit import Equilibrium, Looped, one_weight
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

    def begin(*arguments, **options):
        assert sum(point() is not None for point in kept) <= 1  # the first iterate
        return real(*arguments, **options)

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


def in_a_thread_of_the_engine(act):
    """Call a function where PyTorch runs backward passes of a GPU: on a processor, one within 60 others."""
    found = []

    class Nested(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, depth):
            ctx.depth = depth
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            if ctx.depth:
                nested(ctx.depth - 1)
            else:
                found.extend((threading.get_ident(), act()))
            return grad, None

    @torch.enable_grad()
    def nested(depth):
        x = torch.ones((), device="cpu", requires_grad=True)
        torch.autograd.grad(Nested.apply(x, depth), x)

    nested(70)
    assert found[0] != threading.get_ident()
    return found[1]


class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = weight_norm(nn.Linear(DIM, DIM))

    def forward(self, z, x):
        return torch.tanh(0.3 * self.linear(z) + x)


def started(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def ended(*threads):
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "it waits for ever"


def test_a_backward_pass_within_a_solve_does_not_wait_for_it():
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Looped(Split(), steps=2)

        def forward(self, z, x):
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                energy = checkpoint(lambda z: self.inner(z, z0=x).square().sum(), z, use_reentrant=False)
                (pulled,) = in_a_thread_of_the_engine(lambda: torch.autograd.grad(energy, z))
            return 0.1 * x - 0.05 * pulled

    layer, x, found = Equilibrium(Energy(), solver=Picard()), torch.randn(ROWS, DIM), []
    ended(started(lambda: found.append(layer.solve(x))))
    found[0].check()


def test_a_backward_pass_goes_first_where_the_turn_waits_for_its_thread(monkeypatch):
    """As where two threads train on one GPU, whose backward passes run in one thread."""
    monkeypatch.setattr("implicit.parametrized.WAIT", 0.01)
    one, other, x = Looped(Split(), steps=2), Looped(Split(), steps=2), torch.randn(ROWS, DIM)
    expected, has_turn, recomputed, found = other(x), threading.Event(), threading.Event(), []

    def with_the_turn():
        with one_weight(one):
            weight = one.cell.linear.weight
            has_turn.set()
            in_a_thread_of_the_engine(lambda: recomputed.wait(60))
            found.append(one.cell.linear.weight is weight)

    def recompute():
        has_turn.wait(60)
        found.append(in_a_thread_of_the_engine(lambda: other(x)))
        recomputed.set()

    ended(started(with_the_turn), started(recompute))
    torch.testing.assert_close(found[0], expected)
    assert found[1] is True
    assert not parametrize._cache


@pytest.mark.parametrize("in_the_engine", [False, True])
def test_a_recomputation_waits_for_the_solve_of_another_thread(in_the_engine, monkeypatch):
    """However long that takes: both share PyTorch's one cache of parametrized weights."""
    monkeypatch.setattr("implicit.parametrized.WAIT", 0.01)
    order, has_turn = [], threading.Event()

    class Slow(Split):
        def forward(self, z, x):
            has_turn.set()
            time.sleep(0.1)
            order.append("slow")
            return super().forward(z, x)

    slow, fast, x = Looped(Slow(), steps=4), Looped(Split(), steps=2), torch.randn(ROWS, DIM)
    loss = checkpoint(fast, x, use_reentrant=False).square().sum()

    def recompute():
        has_turn.wait(60)
        in_a_thread_of_the_engine(loss.backward) if in_the_engine else loss.backward()
        order.append("recomputed")

    ended(started(lambda: slow(x)), started(recompute))
    assert order == ["slow"] * 4 + ["recomputed"]
    assert not parametrize._cache


def test_blocks_of_one_thread_may_end_in_any_order():
    """As those of generators and of asyncio's tasks do; the turn ends with the last one."""
    modules, order = [weight_norm(nn.Linear(DIM, DIM)) for _ in range(3)], []

    def block(module):
        with one_weight(module):
            yield

    blocks = [block(module) for module in modules[:2]]
    for each in blocks:
        next(each)

    def other():
        with one_weight(modules[2]):
            order.append("other")

    waiting = started(other)
    for each in blocks:
        time.sleep(0.05)
        order.append("block")
        next(each, None)
    ended(waiting)
    assert order == ["block", "block", "other"]
    assert not parametrize._cache


def test_who_goes_first_leaves_no_weights_of_a_turn_that_has_ended(monkeypatch):
    monkeypatch.setattr("implicit.parametrized.WAIT", 0.01)
    one, other = (weight_norm(nn.Linear(DIM, DIM)) for _ in range(2))
    has_turn, went_first, is_over = (threading.Event() for _ in range(3))

    def with_the_turn():
        with one_weight(one):
            has_turn.set()
            in_a_thread_of_the_engine(lambda: went_first.wait(60))
        is_over.set()

    def going_first():
        with one_weight(other):
            went_first.set()
            is_over.wait(60)

    def recompute():
        has_turn.wait(60)
        in_a_thread_of_the_engine(going_first)

    ended(started(with_the_turn), started(recompute))
    assert not parametrize._cache
    assert not parametrize._cache_enabled


def test_an_interrupt_leaves_the_turn_to_others(monkeypatch):
    monkeypatch.setattr("implicit.parametrized.WAIT", 0.01)
    module, found = weight_norm(nn.Linear(DIM, DIM)), []
    with monkeypatch.context() as patch:

        def interrupted(*_):
            raise KeyboardInterrupt

        patch.setattr("implicit.parametrized._leave", interrupted)
        with pytest.raises(KeyboardInterrupt), one_weight(module):
            pass

    def solve_again():
        with one_weight(module):
            found.append(module.weight)

    solve_again()
    ended(started(solve_again))
    assert len(found) == 2


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_within_a_turn_of_another_thread():
    module, has_turn, forked = weight_norm(nn.Linear(DIM, DIM)), threading.Event(), threading.Event()

    def with_the_turn():
        with one_weight(module):
            has_turn.set()
            forked.wait(60)

    other = started(with_the_turn)
    has_turn.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends the child if it waits for ever
        with one_weight(module):
            os._exit(0)
    forked.set()
    ended(other)
    assert os.waitpid(child, 0)[1] == 0


def test_threads_that_a_cell_starts_are_told_that_they_wait(monkeypatch):
    monkeypatch.setattr("implicit.parametrized.WAIT", 0.01)
    monkeypatch.setattr("implicit.parametrized.LONG", 0.05)
    found = []

    def wait():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with one_weight(weight_norm(nn.Linear(DIM, DIM))):
                found.extend(str(each.message) for each in caught)

    with one_weight(weight_norm(nn.Linear(DIM, DIM))):
        waiting = started(wait)
        time.sleep(0.3)
    ended(waiting)
    assert len(found) == 1
    assert "which MainThread has" in found[0]
    assert "let the cell call its parts one after the other" in found[0]


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


def test_an_exception_may_be_its_own_cause():
    class Refused(Cell):
        def forward(self, z, x):
            try:
                return super().forward(z, x) + 0.0 * solve(lambda y: 0.5 * y, torch.zeros_like(z)).value
            except Exception as error:
                raise error from error

    layer, x = Equilibrium(Refused(), loop=Captured(), compact=False), torch.randn(ROWS, DIM)
    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        ended(started(lambda: [layer.solve(x) for _ in range(3)]))
