"""What distinguishes one recorded solve from another: whatever f can tell apart, in either pass.

Each change is tried after the layer has recorded what came before, forward and backward. Recordings are called, and
replayed as a CUDA graph would be.
"""

import gc
import warnings
import weakref
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MethodType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from implicit import ConvergenceWarning, Equilibrium, ImplicitGradient, ReversibleGradient
from implicit.keys import value_key
from implicit.sources import forward_source
from solvers import Captured, Eager, Picard, Reversible
from solvers.loops import tape
from solvers.problem import prepare
from tests.replays import Replayed

from .cells import alike

pytestmark = pytest.mark.usefixtures("recording", "default_device")
ROWS, DIM = 4, 6


class Doubled(torch.Tensor):
    """Counts twice."""


@dataclass
class Scale:
    value: float


class Cell(nn.Module):
    """A contraction, with optional inputs and much that can change."""

    def __init__(self):
        super().__init__()
        self.linear, self.other = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        with torch.no_grad():
            self.linear.weight.mul_(0.4)
        self.scale, self.table, self.functions = 1.0, {"scale": 1.0}, [torch.tanh]
        self.recent = deque([1.0], maxlen=2)
        self.register_buffer("mask", torch.ones(DIM, dtype=torch.bool))

    def forward(self, z, x, a=None, b=None):
        h = self.linear(z * self.mask.to(z.dtype)) * (self.scale * self.table["scale"] * self.recent[-1])
        if not self.training:
            h = 0.5 * h
        h = h + self.values(x)
        if a is not None:
            h = h + 0.5 * self.values(a)
        return self.functions[0](h if b is None else h * (b + 1) / 3)

    def values(self, x):
        """One tensor of all kinds of inputs."""
        if isinstance(x, dict):
            factors = [(1.0 + 0.5 * (name == "shift")) * (place + 1) for place, name in enumerate(x)]
            return sum(factor * self.values(value) for factor, value in zip(factors, x.values(), strict=True))
        if isinstance(x, (tuple, list)):
            return sum((place + 1) * self.values(value) for place, value in enumerate(x))
        if isinstance(x, bool):
            return 0.7 if x else -0.7
        if isinstance(x, slice):
            return float(x.stop)
        if isinstance(x, Scale):
            return x.value
        if isinstance(x, torch.Tensor) and x.dim() == 2:
            return (x.as_subclass(torch.Tensor) * 2 if isinstance(x, Doubled) else x) * (
                1 if x.is_contiguous() else 0.5
            )
        return float(x) if isinstance(x, np.generic) else x


def layers(**options):
    torch.manual_seed(1)
    cell = Cell()
    options = {"compact": False, "rtol": 1e-6, "initial": lambda *inputs: torch.zeros(ROWS, DIM), **options}
    gradient = ImplicitGradient(rtol=1e-6)
    return [Equilibrium(cell, loop=loop, gradient=gradient, **options) for loop in (Eager(4), Captured(4))]


def inputs(count):
    return [torch.randn(ROWS, DIM) for _ in range(count)]


def indices():
    return torch.randint(3, (ROWS, DIM))


KINDS = {
    "None elsewhere": lambda x, y, w, cell: ((x, None, y), (x, y, None)),
    "None and integers": lambda x, y, w, cell: ((x, indices(), None), (x, None, indices())),
    "another name": lambda x, y, w, cell: (({"scale": x},), ({"shift": x},)),
    "another nesting": lambda x, y, w, cell: (((x, y), w), (x, (y, w))),
    "a list for a tuple": lambda x, y, w, cell: (((x, y),), ([x, y],)),
    "the same tensor elsewhere": lambda x, y, w, cell: ((x, y, x), (x, y, y)),
    "a tensor of its own": lambda x, y, w, cell: ((x, cell.linear.bias), (x, cell.other.bias)),
    "one and true": lambda x, y, w, cell: ((x, 1), (x, True)),
    "one and one": lambda x, y, w, cell: ((x, True), (x, 1.0)),
    "another order of names": lambda x, y, w, cell: (({"a": x, "b": y},), ({"b": y, "a": x},)),
    "another class of tensors": lambda x, y, w, cell: ((x,), (x.as_subclass(Doubled),)),
    "another order in memory": lambda x, y, w, cell: ((x,), (x.t().contiguous().t(),)),
    "numbers of NumPy": lambda x, y, w, cell: ((x, np.float64(0.1)), (x, np.float64(0.4))),
    "slices": lambda x, y, w, cell: ((x, slice(0, 2)), (x, slice(0, 3))),
    "settings": lambda x, y, w, cell: ((x, Scale(0.2)), (x, Scale(0.4))),
    "signs of zero": lambda x, y, w, cell: ((x, 0.0), (x, -0.0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_another_structure(kind):
    eager, captured = layers()
    first, then = KINDS[kind](*inputs(3), captured.cell)
    for call in (first, then, first):
        for _ in range(4):
            alike(lambda layer, call=call: layer(*call), eager, captured)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (torch.zeros(ROWS, 2, 3), torch.zeros(ROWS, 3, 2)),
        (torch.zeros(ROWS, DIM), (torch.zeros(ROWS, 2), torch.zeros(ROWS, 4))),
        (torch.zeros(ROWS, DIM, dtype=torch.bfloat16), torch.zeros(ROWS, DIM)),
        ({"a": torch.zeros(ROWS, DIM), "b": torch.zeros(ROWS, DIM)},) * 2,
    ],
    ids=["shape", "containers", "dtype", "order"],
)
def test_states_of_another_layout(first, then):
    class Shaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(DIM, DIM)
            with torch.no_grad():
                self.linear.weight.mul_(0.3)

        def forward(self, z, x):
            if isinstance(z, dict):
                return {name: 0.3 * torch.tanh(h) + (k + 1) * x for k, (name, h) in enumerate(z.items())}
            if isinstance(z, tuple):
                return z[0] * 0.5 + x[:, :2], z[1].tanh() * 0.3 + x[:, 2:]
            moved = torch.tanh(self.linear(z.flatten(1).float()).view(z.shape) + 0.3 * z.float().cumsum(1))
            return (0.5 * moved + x.view(z.shape)).to(z.dtype)

    cell, (x,) = Shaped(), inputs(1)
    eager, captured = (Equilibrium(cell, loop=loop, compact=False, rtol=1e-6) for loop in (Eager(4), Captured(4)))
    if isinstance(first, dict):
        then = dict(reversed(first.items()))
    for start in (first, then, first):
        start = {name: part.to(x.device) for name, part in start.items()} if isinstance(start, dict) else start
        start = tuple(s.to(x.device) for s in start) if isinstance(start, tuple) else start
        start = start.to(x.device) if isinstance(start, torch.Tensor) else start
        for _ in range(4):
            with torch.no_grad():
                one, other = eager.solve(x, z0=start), captured.solve(x, z0=start)
            torch.testing.assert_close(other.value, one.value, rtol=1e-5, atol=1e-6)


@contextmanager
def attribute(cell):
    cell.scale = 0.3
    yield
    cell.scale = 1.0


@contextmanager
def entry(cell):
    cell.table["scale"] = 0.3
    yield
    cell.table["scale"] = 1.0


@contextmanager
def mode(cell):
    cell.eval()
    yield
    cell.train()


@contextmanager
def hook(cell):
    handle = cell.linear.register_forward_hook(lambda module, args, output: 0.4 * output)
    yield
    handle.remove()


@contextmanager
def buffer(cell):
    cell.mask[::2] = False
    yield
    cell.mask[::2] = True


@contextmanager
def other_buffer(cell):
    before, cell.mask = cell.mask, torch.arange(DIM) % 2 == 0
    yield
    cell.mask = before


@contextmanager
def function(cell):
    cell.functions[0] = lambda h: 0.4 * torch.tanh(h)
    yield
    cell.functions[0] = torch.tanh


@contextmanager
def queue(cell):
    cell.recent.append(0.3)
    yield
    cell.recent.append(1.0)


CHANGES = [attribute, entry, mode, hook, buffer, other_buffer, function, queue]


@pytest.mark.parametrize("change", CHANGES)
def test_the_backward_pass_is_that_of_the_forward_pass_whatever_has_changed_since(change):
    eager, captured = layers()
    x, y = inputs(2)

    def between(layer):
        with change(layer.cell):
            return layer(x)

    def both(layer):
        with change(layer.cell):
            value = layer(x)
        return value + layer(y)

    for call in (between, both, lambda layer: layer(x)):
        for _ in range(5):
            alike(call, eager, captured)


REACHES_ITSELF = {
    "a hook": lambda cell: cell.linear.register_forward_hook(lambda module, args, out: cell.gain * out),
    "a hook before": lambda cell: cell.linear.register_forward_pre_hook(lambda module, args: (cell.gain * args[0],)),
    "a method as a hook": lambda cell: cell.linear.register_forward_hook(MethodType(_scaled_by, cell)),
    "a hook of the backward pass": lambda cell: cell.linear.register_full_backward_hook(
        lambda module, given, grads: (cell.gain * given[0],)
    ),
    "a function": lambda cell: setattr(cell, "functions", [lambda h: torch.tanh(cell.gain * h)]),
    "a method in a list": lambda cell: setattr(cell, "functions", [MethodType(_scaled, cell)]),
    "a method": lambda cell: setattr(cell, "values", MethodType(_scaled, cell)),
}


def _scaled(cell, h):
    return torch.tanh(cell.gain * h)


def _scaled_by(cell, module, args, out):
    return cell.gain * out


@pytest.mark.parametrize("way", REACHES_ITSELF)
def test_what_reaches_the_cell_itself_and_its_change_before_the_backward_pass(way):
    eager, captured = layers()
    REACHES_ITSELF[way](eager.cell)
    (x,) = inputs(1)
    for gain in (0.1, 0.1, 0.1, 0.9, 0.9, 0.9):

        def call(layer, gain=gain):
            layer.cell.gain = 0.9
            value = layer(x)
            layer.cell.gain = gain
            return value

        alike(call, eager, captured)


def test_integers_written_to_before_the_backward_pass():
    eager, captured = layers()
    (x,) = inputs(1)

    def call(layer):
        b = torch.full((ROWS, DIM), 2)
        value = layer(x, None, b)
        b.zero_()
        return value

    for _ in range(5):
        alike(call, eager, captured)


@pytest.mark.parametrize("change", [attribute, mode, hook])
def test_a_second_derivative_is_that_of_the_forward_pass(change):
    """It evaluates the cell again, as do checkpoints."""
    (x,) = inputs(1)
    found = []
    for forward, throughout in ((change, unchanged), (unchanged, change)):
        eager, _ = layers()
        with throughout(eager.cell):
            with forward(eager.cell):
                value = eager(x.requires_grad_())
            (first,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), eager.cell.linear.weight)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@contextmanager
def unchanged(cell):
    yield


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("changes", [None, 0.1, float("nan")])
def test_a_second_evaluation_that_has_another_value_is_told(changes, hooked):
    eager, _ = layers()
    REACHES_ITSELF["a hook"](eager.cell)
    eager.cell.gain = 0.9
    (x,) = inputs(1)
    x.requires_grad_()
    with torch.autograd.graph.save_on_cpu() if hooked else nullcontext():
        value = eager(x)
    if changes is not None:
        eager.cell.gain = changes
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.autograd.grad(value.square().sum(), x, create_graph=not hooked)
    told = [each for each in told if not issubclass(each.category, ConvergenceWarning)]
    assert ["gave another value" in str(each.message) for each in told] == [True] * (changes is not None)
    assert all(each.filename == __file__ for each in told)


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")
@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_the_autocast_of_the_forward_pass(order):
    eager, captured = layers()
    (x,) = inputs(1)

    def call(layer, on):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=on):
            return layer(x)

    for on in (*order, *order):
        for _ in range(4):
            alike(partial(call, on=on), eager, captured)


@pytest.mark.filterwarnings("ignore:Please use the new API")
def test_settings_that_choose_kernels():
    _, captured = layers()
    (x,) = inputs(1)
    before = torch.get_float32_matmul_precision()
    try:
        for number, precision in enumerate(["highest", "high"]):
            torch.set_float32_matmul_precision(precision)
            for _ in range(3):
                captured.solve(x)
            assert len(captured._captures) == number + 1
    finally:
        torch.set_float32_matmul_precision(before)
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            captured.solve(x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(captured._captures) == 3


class Halving(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return 0.5 * result if function is torch.tanh else result


def test_modes_of_functions():
    eager, captured = layers()
    (x,) = inputs(1)
    for _ in range(4):
        with torch.device(x.device):  # another mode each time, to the same effect
            alike(lambda layer: layer(x), eager, captured)
    assert len(captured._captures) == 2, "forward and backward"
    with Halving():
        for _ in range(4):
            alike(lambda layer: layer(x), eager, captured)
    alike(lambda layer: layer(x), eager, captured)


def test_another_object_at_the_same_address():
    eager, captured = layers()
    (x,) = inputs(1)
    for factor in (0.2, 0.5, 0.9):
        captured.cell.functions[0] = None
        gc.collect()
        captured.cell.functions[0] = lambda h, factor=factor: factor * torch.tanh(h)
        for _ in range(4):
            alike(lambda layer: layer(x), eager, captured)


def test_two_names_of_one_submodule():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
            self.last = self.one

        def forward(self, z, x):
            return 0.3 * torch.tanh(self.one(z) - self.two(z) + self.last(z)) + x

    cell, (x,) = Named(), inputs(1)
    eager, captured = (Equilibrium(cell, loop=loop, compact=False, rtol=1e-6) for loop in (Eager(4), Captured(4)))
    for last in (cell.one, cell.two, cell.one):
        cell.last = last
        for _ in range(4):
            alike(lambda layer: layer(x), eager, captured)


def transposed(cell):
    cell.linear.weight.data = cell.linear.weight.data.t()


def negated(cell):
    cell.parametrizations.gate.original.data.neg_()


def conjugated(cell):
    cell.phase = cell.phase.conj()


def damped(cell):
    cell.linear.__class__ = Damped


class Damped(nn.Linear):
    def forward(self, z):
        return 0.3 * super().forward(z)


class Gate(nn.Module):
    def forward(self, weight):
        return weight > 0


class Computed(Cell):
    """Of complex numbers, and with a computed mask."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.linspace(-1, 1, DIM))
        parametrize.register_parametrization(self, "gate", Gate(), unsafe=True)
        self.register_buffer("phase", torch.complex(torch.zeros(DIM), torch.linspace(0.1, 1, DIM)))

    def forward(self, z, x):
        return torch.tanh((self.linear(z * self.gate) * self.phase).imag + x)


@pytest.mark.parametrize(
    ("make", "change"), [(Cell, transposed), (Computed, negated), (Computed, conjugated), (Cell, damped)]
)
def test_what_has_the_same_address(make, change):
    torch.manual_seed(1)
    cell, (x,) = make(), inputs(1)
    eager, captured = (Equilibrium(cell, loop=loop, compact=False, rtol=1e-6) for loop in (Eager(4), Captured(4)))
    if make is Computed:
        with pytest.warns(RuntimeWarning, match="cannot be captured: its parametrized gate is not of floating point"):
            captured.solve(x)
    for step in range(8):
        if step == 4:
            cell.zero_grad()
            change(cell)
        alike(lambda layer: layer(x), eager, captured)


def test_hooks_on_all_modules():
    eager, captured = layers()
    (x,) = inputs(1)
    for _ in range(4):
        alike(lambda layer: layer(x), eager, captured)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: 0.5 * output if isinstance(module, nn.Linear) else None
    )
    try:
        for _ in range(4):
            alike(lambda layer: layer(x), eager, captured)
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")
def test_autocast_around_the_backward_pass_alone():
    eager, captured = layers()
    (x,) = inputs(1)
    for on in (False, True):
        for _ in range(4):
            found = []
            for layer in (eager, captured):
                layer.zero_grad()
                value = layer(x)
                with torch.autocast(x.device.type, torch.bfloat16, enabled=on):
                    value.square().sum().backward()
                found.append(layer.cell.linear.weight.grad)
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


class Slotted(Cell):
    __slots__ = ("factor",)

    def __init__(self):
        super().__init__()
        self.factor = 0.5

    def forward(self, z, x):
        return self.factor * super().forward(z, x)


class New(Cell):
    def __new__(cls, *, size):
        return super().__new__(cls)

    def __init__(self, *, size):
        super().__init__()


class Sparse(Cell):
    def __init__(self):
        super().__init__()
        self.register_buffer("adjacency", torch.eye(DIM).to_sparse())

    def forward(self, z, x):
        x = x.to_dense() if x.is_sparse else x
        return super().forward((self.adjacency @ z.t()).t(), x)


class Unused(Cell):
    def forward(self, z, x):
        return torch.tanh(self.linear(x))


@pytest.mark.filterwarnings("ignore:loop=Captured:RuntimeWarning")
@pytest.mark.parametrize("make", [Slotted, partial(New, size=3), Sparse, Unused])
def test_cells_for_which_eager_has_no_error(make):
    torch.manual_seed(1)
    cell, (x,) = make(), inputs(1)
    cell.itself = [cell.scale]
    if make is Sparse:
        x = x.to_sparse()  # which cannot be recorded
    eager, captured = (
        Equilibrium(cell, loop=loop, compact=False, rtol=1e-6, initial=lambda x: torch.zeros(ROWS, DIM))
        for loop in (Eager(4), Captured(4))
    )
    for step in range(8):
        if step == 4:
            cell.itself.append(cell.itself)
        alike(lambda layer: layer(x), eager, captured)


def trained_alike(cell, x, steps=5, **options):
    """Train by both loops; returns the layer that records."""
    eager, captured = (
        Equilibrium(cell, loop=loop, compact=False, rtol=1e-6, **options) for loop in (Eager(4), Captured(4))
    )
    wanted = [parameter for parameter in cell.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(wanted, lr=0.05)
    for _ in range(steps):
        alike(lambda layer: layer(x), eager, captured)
        optimizer.step()
    return captured


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("form", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
@pytest.mark.parametrize("size", [DIM, 200])
def test_a_graph_that_is_a_sparse_buffer_is_recorded_both_ways(form, size):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(DIM, DIM)
            self.register_buffer("adjacency", form(0.5 * torch.eye(size) + 0.1 / size))

        def forward(self, z, x):
            return torch.tanh(0.3 * self.linear(self.adjacency @ z[0])[None] + x)

    captured = trained_alike(Graph(), torch.randn(1, size, DIM))
    assert len(captured._captures) == 2


class Energy(nn.Module):
    """A gradient step of an energy, by `torch.func.grad`."""

    def __init__(self):
        super().__init__()
        self.inner, self.inject = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, z, x):
        def energy(z):
            return 0.5 * z.square().sum() - 0.3 * nn.functional.softplus(self.inner(z) + self.inject(x)).sum()

        return z - 0.4 * torch.func.grad(energy)(z)


def test_a_cell_that_takes_gradients_by_torch_func_is_recorded_both_ways():
    captured = trained_alike(Energy(), *inputs(1))
    assert len(captured._captures) == 2


def test_a_sparse_input_prevents_its_own_solves_only():
    captured, (x,) = Equilibrium(Sparse(), loop=Captured(4), initial=lambda x: torch.zeros(ROWS, DIM)), inputs(1)
    with pytest.warns(RuntimeWarning, match=r"Sparse cannot be captured: an input.* is sparse"):
        captured(x.to_sparse())
    for _ in range(3):
        captured(x).sum().backward()
    assert len(captured._captures) == 2


def test_anomaly_mode_prevents_only_the_products_that_it_checks(recwarn):
    captured, (x,) = Equilibrium(Cell(), loop=Captured(4)), inputs(1)
    with torch.autograd.set_detect_anomaly(True):
        for _ in range(3):
            captured(x).sum().backward()
    assert len(captured._captures) == 1
    for _ in range(3):
        captured(x).sum().backward()
    assert len(captured._captures) == 2
    assert not [told for told in recwarn if "Captured" in str(told.message)]


def test_recordings_of_backward_passes_read_frozen_weights_in_place():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.inject = nn.Linear(200, 200), nn.Linear(200, 200)
            self.inner.weight.requires_grad_(False).mul_(0.3)

        def forward(self, z, x):
            return torch.tanh(self.inner(z) + self.inject(x))

    captured = trained_alike(Wide(), torch.randn(ROWS, 200))
    kept = [each for each in captured._captures._tapes.values() if each is not None]
    assert len(kept) == 2
    for each in kept:
        assert all(tensor.numel() <= ROWS * 200 for tensor in each.tensors)


@pytest.mark.parametrize("write", [torch.Tensor.copy_, lambda old, new: old.mul_(0.1), torch.Tensor.add_])
def test_writes_to_a_sparse_buffer_are_seen(write):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(DIM, DIM)
            self.register_buffer("adjacency", (0.5 * torch.eye(20)).to_sparse())

        def forward(self, z, x):
            return torch.tanh(0.3 * self.linear(self.adjacency @ z[0])[None] + x)

    cell, x = Graph(), torch.randn(1, 20, DIM)
    eager, captured = (Equilibrium(cell, loop=loop, compact=False, rtol=1e-6) for loop in (Eager(4), Captured(4)))
    for _ in range(3):
        for _ in range(3):
            with torch.no_grad():
                torch.testing.assert_close(captured(x), eager(x))
            alike(lambda layer: layer(x), eager, captured)
        write(cell.adjacency, (0.05 * torch.ones(20, 20)).to_sparse())


class Descent(nn.Module):
    """A gradient step of an energy, by `torch.autograd.grad`."""

    def __init__(self):
        super().__init__()
        self.inner, self.inject = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, z, x):
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            energy = 0.5 * z.square().sum() - 0.3 * nn.functional.softplus(self.inner(z) + self.inject(x)).sum()
            return z - 0.4 * torch.autograd.grad(energy, z, create_graph=True)[0]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_a_cell_that_takes_gradients(reentrant):
    eager, captured = (Equilibrium(Descent(), loop=loop, compact=False) for loop in (Eager(4), Captured(4)))
    captured.load_state_dict(eager.state_dict())
    for _ in range(5):
        (x,) = inputs(1)
        alike(lambda layer, x=x.requires_grad_(): checkpoint(layer, x, use_reentrant=reentrant), eager, captured)
    assert len(captured._captures) == 2


@pytest.mark.parametrize("size", [100, 20000])
def test_backward_passes_leave_buffers_alone_that_the_cell_writes_to(size):
    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = nn.Linear(size, 4), nn.Linear(4, size)
            self.register_buffer("mean", torch.zeros(size))

        def forward(self, z, x):
            with torch.no_grad():
                self.mean.lerp_(z.mean(0), 0.1)
            return 0.5 * torch.tanh(self.wide(self.narrow(z)) + x)

    layer, x = Equilibrium(Averaging(), loop=Captured(4)), torch.randn(ROWS, size)
    for _ in range(4):
        value, before = layer(x), layer.cell.mean.clone()
        value.sum().backward()
        assert torch.equal(layer.cell.mean, before)
    assert len(layer._captures) == 2


def test_derivatives_in_forward_mode_that_are_zero_are_refused_in_words():
    class Hessian(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(DIM, DIM)

        def forward(self, z, x):
            def energy(z, x):
                return nn.functional.softplus(self.linear(z) + x).sum() - 0.5 * z.square().sum()

            return 0.1 * torch.tanh(torch.vmap(torch.func.hessian(energy))(z, x).sum(-1)) + 0.1 * z

    eager, captured = (Equilibrium(Hessian(), loop=loop, compact=False) for loop in (Eager(4), Captured(4)))
    captured.load_state_dict(eager.state_dict())
    (x,) = inputs(1)
    alike(lambda layer: layer(x), eager, captured)
    with pytest.warns(RuntimeWarning, match=r"Hessian, .*forward mode that are zero.*jacrev"):
        alike(lambda layer: layer(x), eager, captured)
    alike(lambda layer: layer(x), eager, captured)


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")
@pytest.mark.parametrize("loop", [Eager(), Eager(3), Captured(3)], ids=repr)
def test_a_reversible_row_that_failed_and_is_not_in_the_loss_spoils_no_gradient(loop):
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.shift = nn.Linear(DIM, DIM), nn.Parameter(torch.zeros(DIM))

        def forward(self, z, x):
            return torch.tanh(0.5 * self.linear(z)) + x + self.shift

    options = {"solver": Reversible(), "gradient": ReversibleGradient(), "compact": False}
    layer = Equilibrium(Added(), loop=loop, **options).double()
    alone = Equilibrium(layer.cell, **options)
    for _ in range(4):
        x = torch.randn(3, DIM, dtype=torch.float64)
        x[1] = torch.nan
        wanted = list(layer.parameters())
        found = torch.autograd.grad(layer(x)[[0, 2]].square().sum(), wanted)
        torch.testing.assert_close(found, torch.autograd.grad(alone(x[[0, 2]]).square().sum(), wanted))
    layer(torch.randn(0, DIM, dtype=torch.float64)).sum().backward()


def test_a_cell_that_was_seen_to_read_something_unnoticed_is_not_recorded_again():
    class Prepared(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw, self.inject = nn.Parameter(torch.randn(DIM, DIM)), nn.Linear(DIM, DIM)
            self.prepare()

        def prepare(self):
            self._weight = 0.8 * self.raw / torch.linalg.matrix_norm(self.raw, 2)

        def forward(self, z, x):
            return torch.tanh(z @ self._weight + self.inject(x))

    eager, captured = (Equilibrium(Prepared(), loop=loop, compact=False) for loop in (Eager(3), Captured(3)))
    told = []
    for step in range(11):
        with torch.no_grad():
            for layer in (eager, captured):
                layer.cell.raw.copy_(torch.randn(DIM, DIM, generator=torch.Generator("cpu").manual_seed(step)))
        for layer in (eager, captured):
            layer.cell.prepare()
        captured.cell.inject.load_state_dict(eager.cell.inject.state_dict())
        (x,) = inputs(1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            alike(lambda layer, x=x: layer(x), eager, captured)
        told += [str(warning.message) for warning in caught if "Captured" in str(warning.message)]
    assert len(told) == (tape.Called is Replayed)  # a call reads the new weight
    assert all("changed unnoticed" in text for text in told)


def test_what_makes_every_solve_a_new_kind_is_told():
    _, captured = layers()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(100):
            captured.cell.scale = 0.5 + 0.001 * step
            captured.solve(*inputs(1))
    (only,) = told
    assert "none of the last 24 solves of Cell, forward replayed a recording" in str(only.message)
    assert len(captured._captures) == 0


def test_what_changed_unnoticed_is_told_and_solved_again():
    class Shifted(Cell):
        def forward(self, z, x):
            return super().forward(z, x) + self._shift

    cell, (x,) = Shifted(), inputs(1)
    cell._shift = 0.0
    eager, captured = (Equilibrium(cell, loop=loop, compact=False, rtol=1e-6) for loop in (Eager(4), Captured(4)))
    for _ in range(4):
        alike(lambda layer: layer(x), eager, captured)
    cell._shift = 1.0
    with pytest.warns(RuntimeWarning, match="name begins with an underscore"):
        alike(lambda layer: layer(x), eager, captured)
    for _ in range(4):
        alike(lambda layer: layer(x), eager, captured)
    assert len(captured._captures) == 0  # it may change again, where nothing would tell


@pytest.mark.filterwarnings("error")
def test_parameters_that_are_not_there_yet():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.inject = nn.LazyLinear(DIM), nn.LazyLinear(DIM)

        def forward(self, z, x):
            return 0.3 * torch.tanh(self.inner(z) + self.inject(x))

    layer, (x,) = Equilibrium(Lazy(), compact=False, loop=Captured(4)), inputs(1)
    for _ in range(4):
        layer(x).sum().backward()
    assert len(layer._captures) == 2


@pytest.mark.filterwarnings("ignore:loop=Captured")
def test_what_f_sets_is_recorded_under_another_name_alone():
    class Keeping(Cell):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, z, x):
            value = super().forward(z, x)
            setattr(self, self.name, value)
            return value

    recorded = []
    for name in ("attention", "_attention"):
        layer, (x,) = Equilibrium(Keeping(name), compact=False, loop=Captured(4)), inputs(1)
        for _ in range(20):
            layer(x).sum().backward()
        recorded.append(len(layer._captures))
    assert recorded[1] == 2
    assert recorded[0] <= 1  # the backward pass, if f is not evaluated between the passes


def test_long_containers_are_not_walked_through():
    key = value_key(list(range(10**6)))
    assert key[:2] == (list, 10**6)
    assert len(key) == 3
    assert value_key([1, [2, 3]]) == value_key([1, [2, 3]]) != value_key([1, [2, 4]])


@pytest.mark.parametrize("where", ["input", "integer input", "attribute", "in a list", "buffer", "parameter"])
def test_values_on_a_processor_beside_a_gpu(where):
    """They become numbers of the CUDA graph."""
    cell, x = Cell().cpu(), torch.randn(ROWS, DIM, device="cpu")
    value = torch.tensor(2 if where == "integer input" else 0.5, device="cpu")
    if where == "attribute":
        cell.factor = value
    elif where == "in a list":
        cell.factors = [value]
    elif where == "buffer":
        cell.register_buffer("factor", value)
    elif where == "parameter":
        cell.factor = nn.Parameter(value)
        value = cell.factor.data
    problem = prepare(cell, torch.zeros(ROWS, DIM, device="cpu"), (x, value) if "input" in where else (x,))
    signatures = []
    problem.layout.device = torch.device("cuda", 0)
    for change in (0, 0, 1):
        value += change
        signatures.append(forward_source(problem).signature)
    assert signatures[0] == signatures[1] != signatures[2]


def test_a_solver_without_a_hash_is_refused():
    class Own(Picard):
        __hash__ = None

    with pytest.raises(TypeError, match="make it a dataclass"):
        Equilibrium(Cell(), solver=Own(), compact=False, loop=Captured())


def test_recordings_keep_no_integers():
    _, captured = layers()
    kept = []
    for _ in range(5):
        (x,) = inputs(1)
        index = indices()
        kept.append(weakref.ref(index))
        captured(x, None, index).sum().backward()
    assert len(captured._captures) == 2
    del x, index
    gc.collect()
    assert [each() for each in kept] == [None] * len(kept)


def test_settings_that_cannot_be_read_cost_no_word_where_only_the_backward_pass_is_recorded():
    @dataclass
    class Unreadable:
        size: int = 0

        def __getattribute__(self, name):
            if name == "size":
                raise ValueError("not now")
            return super().__getattribute__(name)

    cell, (x,) = Cell(), inputs(1)
    cell.settings = Unreadable()
    layer = Equilibrium(cell, gradient=ImplicitGradient(Picard(), loop=Captured(2)))
    for _ in range(3):
        layer(x).sum().backward()  # a warning would be an error


def test_a_policy_that_the_layer_completes_is_checked():
    class Unhashable(Picard):
        __hash__ = None

    @dataclass(frozen=True)
    class Deriving(ImplicitGradient):
        def __post_init__(self):
            super().__post_init__()
            object.__setattr__(self, "period", getattr(self.solver, "period", None))

    cell, (x,) = Cell(), inputs(1)
    layer = Equilibrium(cell, gradient=ImplicitGradient(Unhashable()), compact=False, loop=Captured())
    with pytest.raises(TypeError, match="Unhashable has no hash"):
        layer(x)
    assert Deriving().behind(layer.settings).period == 3
