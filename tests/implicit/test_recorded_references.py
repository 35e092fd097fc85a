"""What a recorded cell reaches besides its own tensors: other modules, objects, and other rows."""

import warnings
import weakref
from argparse import Namespace
from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, MethodType, SimpleNamespace

import pytest
import torch
from torch import nn

from implicit import Equilibrium
from implicit.keys import value_key
from implicit.references import MANY
from solvers import Captured, Eager
from solvers.loops import tape
from solvers.loops.graphs import Called
from tests.legacy import Sine
from tests.replays import Replayed

from .cells import alike

pytestmark = pytest.mark.usefixtures("recording", "default_device")
ROWS, DIM = 4, 6


class Reaching(nn.Module):
    """Applies a module that it holds in some way."""

    def __init__(self, hold, use, module=None):
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)
        object.__setattr__(self, "held", hold(module or self.linear))
        self._use = use

    def forward(self, z, x):
        return torch.tanh(0.5 * self._use(self.held)(z) + self.linear(x))


class Configured(nn.Module):
    """Scaled by an object's attribute."""

    def __init__(self, held):
        super().__init__()
        self.linear, self.held = nn.Linear(DIM, DIM), held

    def forward(self, z, x, held=None):
        held = self.held if held is None else held
        scale = held["scale"] if isinstance(held, UserDict) else held.scale
        return torch.tanh(scale * self.linear(z) + x)


class Slots:
    __slots__ = ("module", "scale")

    def __init__(self, module=None, scale=1.0):
        self.module, self.scale = module, scale


@dataclass
class Later:
    start: float

    def __post_init__(self):
        self.scale = self.start


class Listed(list):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale


class Net(nn.Module):
    def __init__(self, layer, shared):
        super().__init__()
        self.layer, self.shared = layer, shared

    def forward(self, x):
        return self.layer(self.shared(x))


class Settings:
    def __init__(self, scale, parent=None):
        self.scale, self.parent = scale, parent


class Private:
    def __init__(self, scale):
        self._scale = scale

    @property
    def scale(self):
        return self._scale


class Amplifier:
    scale = 0.2

    def times(self, z):
        return self.scale * z


def layers(cell):
    return [Equilibrium(cell, loop=loop, compact=False, rtol=1e-6) for loop in (Eager(4), Captured(4))]


def itself(held):
    return held


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(ROWS, DIM)


BOUND = {
    "method": (lambda module: module.forward, itself),
    "partial": (lambda module: partial(lambda module, z: module(z), module), itself),
    "partial of a method": (lambda module: partial(module.forward), itself),
}
OTHERWISE = {
    "list": (lambda module: [module], lambda held: held[0]),
    "method in a dict": (lambda module: {"one": module.forward}, lambda held: held["one"]),
    "partial in a list": (lambda module: [partial(lambda z, module: module(z), module=module)], lambda held: held[0]),
    "closure": (lambda module: lambda z: module(z), itself),
    "default": (lambda module: lambda z, module=module: module(z), itself),
    "weak reference": (weakref.ref, lambda held: held()),
    "object": (lambda module: SimpleNamespace(module=module), lambda held: held.module),
    "list in an object": (lambda module: SimpleNamespace(modules=[module]), lambda held: held.modules[0]),
    "another name": (itself, itself),
    "closure over a list": (lambda module: listed(module), itself),
    "slots": (lambda module: Slots(module), lambda held: held.module),
    "read-only mapping": (lambda module: MappingProxyType({"m": module}), lambda held: held["m"]),
    "weak method": (lambda module: weakref.WeakMethod(module.forward), lambda held: held()),
    "key of a dict": (lambda module: {module: 1.0}, lambda held: next(iter(held))),
    "attribute of a function": (lambda module: attached(module), lambda held: held.module),
}


def listed(module):
    modules = [module]
    return lambda z: modules[0](z)


def attached(module):
    def function():
        pass

    function.module = module
    return function


def bound(cell):
    """As an adapter does that wraps a forward."""
    old = cell.linear.forward
    cell.linear.forward = MethodType(lambda self, z: 1.2 * old(z), cell.linear)


def hooked(cell):
    cell.linear.register_forward_hook(cell.damp)


def both_calls_are_alike(x, eager, captured):
    def called(net):
        fast = {name: 1.5 * parameter for name, parameter in net.named_parameters()}
        return torch.func.functional_call(net, fast, (x,))

    for call in (called, lambda net: net(x)):
        for _ in range(4):
            alike(call, eager, captured)


@pytest.mark.parametrize("place", ["in the cell", "elsewhere"])
@pytest.mark.parametrize("way", [*OTHERWISE, *BOUND])
def test_modules_that_are_reached_otherwise_than_as_submodules(way, place, x):
    """A recording would read the weights that lie in the modules, whatever is passed in for them."""
    shared = nn.Linear(DIM, DIM)
    cell = Reaching(*(OTHERWISE | BOUND)[way], shared if place == "elsewhere" else None)
    eager, captured = (Net(layer, shared) for layer in layers(cell))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        both_calls_are_alike(x, eager, captured)
    assert all("cannot be captured: it reads a tensor (6×6)" in str(each.message) for each in told)
    assert len(told) == 1 if place == "elsewhere" else len(told) <= (way not in BOUND)
    assert len(captured.layer._captures) > 0 or told


@pytest.mark.parametrize("change", [bound, hooked])
def test_forwards_and_hooks_bound_to_the_cells_own_modules(change, x):
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.other, self.factor = (
                nn.Linear(DIM, DIM),
                nn.Linear(DIM, DIM),
                nn.Parameter(torch.ones(DIM)),
            )

        def damp(self, module, args, output):
            return 0.8 * self.factor * output

        def forward(self, z, x):
            return torch.tanh(0.5 * self.linear(z) + self.other(x))

    cell = Cell()
    change(cell)
    eager, captured = layers(cell)
    for _ in range(4):
        alike(lambda layer: layer(x), eager, captured)
    assert len(captured._captures) == 2
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        both_calls_are_alike(x, eager, captured)
    assert all("cannot be captured: it reads a tensor" in str(each.message) for each in told)


def test_constants_from_elsewhere_are_refused_with_the_remedy(x):
    constant = torch.linspace(0, 1, DIM)

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self._own = nn.Linear(DIM, DIM), torch.linspace(0, 1, DIM)

        def forward(self, z, x):
            made = torch.tensor([0.1]).to(z) + torch.full((DIM,), 0.2) + torch.arange(DIM) / DIM
            return torch.tanh(0.5 * self.linear(z) + x + made + self._own + (constant if self.training else 0))

    eager, captured = layers(Cell())
    captured.eval()
    for _ in range(3):
        alike(lambda layer: layer(x), eager, captured)
    assert len(captured._captures) == 2
    captured.train()
    captured.solve(x)
    with pytest.warns(RuntimeWarning, match=r"it reads a tensor \(6\).*Make it an input or a buffer"):
        captured.solve(x)
    torch.testing.assert_close(captured(x), eager(x))


class Scaled(Sine):
    """Its derivative reads a tensor of its own."""

    factor = torch.ones(DIM)

    @staticmethod
    def backward(ctx, g):
        return Sine.backward(ctx, g) * Scaled.factor.to(g)


def test_tensors_that_only_the_backward_pass_reads(x, monkeypatch):
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(DIM, DIM)

        def forward(self, z, x):
            return Scaled.apply(0.5 * self.linear(z) + x)

    eager, captured = layers(Cell())
    alike(lambda layer: layer(x), eager, captured)
    with pytest.warns(RuntimeWarning, match=r"Cell, backward cannot be captured: it reads a tensor \(6\)"):
        captured(x).sum().backward()
    for factor in (0.8, 0.5):
        monkeypatch.setattr(Scaled, "factor", torch.full((DIM,), factor))
        alike(lambda layer: layer(x), eager, captured)


def compiled(cell, z, x):
    return cell.fast(0.5 * cell.linear(z), x)


def private(cell, z, x):
    return torch.tanh(0.3 * z @ cell._weights[0] + cell._nested["a"][0]["b"][0] + x)


def exchanged(cell, z, x):
    return torch.tanh(0.5 * cell.linear(z) + torch.from_dlpack(x.detach()))


def differentiated(cell, z, x):
    with torch.enable_grad():
        y = z if z.requires_grad else z.detach().requires_grad_()
        energy = cell.linear(y).tanh().square().sum() + 0.5 * (y - x).square().sum()
        (slope,) = torch.autograd.grad(energy, y, create_graph=z.requires_grad)
    return z - 0.3 * slope


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # PyTorch's own, while it compiles
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("f", [compiled, private, exchanged, differentiated])
def test_tensors_that_a_cell_makes_or_keeps_are_no_hindrance(f, autocast, x, monkeypatch):
    if f is compiled and tape.Called is Replayed:  # which sees no operations of compiled code
        monkeypatch.setattr(tape, "Called", Called)

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self._weights = nn.Linear(DIM, DIM), [nn.Parameter(torch.eye(DIM))]
            self._nested = {"a": [{"b": (torch.ones(DIM),)}]}
            self.fast = torch.compile(lambda a, b: torch.tanh(a + b), fullgraph=True, backend="eager")

        def forward(self, z, x, inputs):
            return f(self, z, x + inputs["a"]["b"]["c"][0]["d"])

    cell = Cell()
    eager, captured = (
        Equilibrium(cell, loop=loop, compact=False, rtol=1e-3, initial=lambda x, inputs: torch.zeros_like(x))
        for loop in (Eager(4), Captured(4))
    )
    inputs = {"a": {"b": {"c": [{"d": torch.randn(ROWS, DIM)}]}}}
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        for _ in range(3):
            torch.testing.assert_close(captured(x, inputs), eager(x, inputs), rtol=2e-2, atol=2e-2)
            captured(x, inputs).float().sum().backward()
    assert len(captured._captures) == 2


@pytest.mark.parametrize(
    "hold", [Namespace, SimpleNamespace, Settings, Slots, Later, Listed, lambda scale: UserDict(scale=scale)]
)
@pytest.mark.parametrize("passed", [False, True])
def test_the_inside_of_objects(hold, passed, x):
    held = hold(**{"start" if hold is Later else "scale": 0.2})
    eager, captured = layers(Configured(None if passed else held))
    given = (x, held) if passed else (x,)
    for scale in (0.2, 0.5, 0.8):
        if isinstance(held, UserDict):
            held["scale"] = scale
        else:
            held.scale = scale
        for _ in range(4):
            with torch.no_grad():
                torch.testing.assert_close(captured(*given), eager(*given))
            alike(lambda layer: layer(*given), eager, captured)
    assert len(captured._captures) > 0


@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize("bind", [lambda held: held.times, lambda held: partial(Amplifier.times, held)])
def test_objects_behind_methods_and_partial_functions_count(bind, passed, x):
    class Applying(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.linear, self.times = nn.Linear(DIM, DIM), times

        def forward(self, z, x, times=None):
            return torch.tanh(self.linear((times or self.times)(z)) + x)

    held = Amplifier()
    eager, captured = layers(Applying(bind(held)))
    for held.scale in (0.2, 0.5, 0.8):
        for _ in range(4):
            given = (x, bind(held)) if passed else (x,)
            with torch.no_grad():
                torch.testing.assert_close(captured(*given), eager(*given))
            alike(lambda layer, given=given: layer(*given), eager, captured)
    assert len(captured._captures) > 0


def test_private_attributes_count_in_inputs(x):
    held = Private(0.2)
    eager, captured = layers(Configured(None))
    for held._scale in (0.2, 0.5, 0.8):
        for _ in range(4):
            with torch.no_grad():
                torch.testing.assert_close(captured(x, held), eager(x, held))
    assert len(captured._captures) > 0


@pytest.mark.parametrize("held", [Settings(0.2, Settings(0.2)), nn.Identity()], ids=["nested", "module"])
def test_inputs_that_cannot_be_seen_into_are_refused_with_one_warning(held, x):
    held.scale = 0.2
    eager, captured = layers(Configured(None))
    with pytest.warns(RuntimeWarning, match="Configured cannot be captured: an input is a"):
        captured.solve(x, held)
    for held.scale in (0.2, 0.5, 0.8):
        for _ in range(4):
            with torch.no_grad():
                torch.testing.assert_close(captured(x, held), eager(x, held))


def test_objects_whose_inside_cannot_be_read_are_refused_with_their_error(x):
    class Closed(Mapping):
        def __len__(self):
            return 1

        def __iter__(self):
            return iter("a")

        def __getitem__(self, key):
            raise OSError("file is closed")

    cell = Configured(Settings(0.2))
    cell.data = Closed()
    eager, captured = layers(cell)
    with pytest.warns(RuntimeWarning, match="what it depends on cannot be told .OSError: file is closed"):
        captured.solve(x)
    alike(lambda layer: layer(x), eager, captured)


def test_containers_are_looked_at_up_to_a_number_of_items_in_all():
    def size(key):
        return sum(map(size, key)) if isinstance(key, tuple) else 1

    assert size(value_key([[0.5] * 1000 for _ in range(1000)])) < 10 * MANY
    nested = [0.5]
    for _ in range(18):
        nested = [nested, nested]
    assert size(value_key(nested)) < 10 * MANY
    assert value_key([[1.0], [2.0]]) != value_key([[1.0], [3.0]])


def test_an_object_that_leads_to_itself_is_no_hindrance(x):
    held = Settings(0.2)
    held.parent = held
    eager, captured = layers(Configured(held))
    for _ in range(4):
        alike(lambda layer: layer(x), eager, captured)
    assert len(captured._captures) > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # PyTorch's own, while it compiles
def test_a_cell_compiled_in_place_is_recorded(x):
    cell = Configured(Settings(0.2))
    cell.compile(backend="eager")
    _, captured = layers(cell)
    for _ in range(4):
        captured(x).sum().backward()
    assert len(captured._captures) == 2


class Mixing(Reaching):
    def forward(self, z, x):
        return super().forward(z, x) + 0.2 * z.mean(0, keepdim=True)


class Normalised(Reaching):
    def __init__(self, hold, use):
        super().__init__(hold, use)
        self.norm = nn.BatchNorm1d(DIM)

    def forward(self, z, x):
        return torch.tanh(0.2 * self.norm(self.linear(z)) + x)


class Attending(Reaching):
    """Attention over the rows, which saturates: large rows see themselves alone."""

    def forward(self, z, x):
        return 0.6 * torch.softmax(z @ z.t(), -1) @ torch.tanh(self.linear(z)) + 3 * x


@pytest.mark.parametrize(
    ("make", "rtol", "rows"), [(Mixing, 1e-3, ROWS), (Normalised, 1e-4, 64), (Attending, 1e-3, ROWS)]
)
def test_rows_that_depend_on_each_other_are_told_as_with_eager(make, rtol, rows):
    said = []
    for loop in (Eager(4), Captured(4)):
        torch.manual_seed(2)
        layer = Equilibrium(make(*BOUND["method"]), loop=loop, compact=False, rtol=rtol)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(30):
                layer(torch.randn(rows, DIM)).square().sum().backward()
        said.append({str(each.message)[:40] for each in told})
    assert not any("loop=Captured" in text for text in said[1])
