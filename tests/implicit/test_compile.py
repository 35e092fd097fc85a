"""torch.compile around and inside an equilibrium."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from implicit import Equilibrium, ImplicitGradient, fixed_point
from solvers import solve

from .cells import DIM, TIGHT, Cell, exact, inputs, tight_layer, unrolled

# PyTorch's own, while it traces
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute", "ignore::DeprecationWarning:torch", "ignore:.*torch.jit.script"
)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = (nn.Linear(DIM, DIM, dtype=torch.float64) for _ in range(2))
        self.equilibrium = tight_layer()

    def forward(self, x):
        return self.after(self.equilibrium(self.before(x).relu())).tanh()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_the_model(backend):
    model, x = Model(), inputs()
    compiled = torch.compile(model, backend=backend)
    targets = [x, *model.parameters()]
    assert torch.equal(compiled(x), model(x))
    for one, other in zip(*(torch.autograd.grad(m(x).sum(), targets) for m in (compiled, model)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


def test_what_lies_around_the_layer_is_compiled_and_the_solve_left_alone():
    model, counter = Model(), CompileCounter()
    torch.compile(model, backend=counter)(inputs())
    assert counter.frame_count == 2  # before and after the layer
    plain = CompileCounter()
    x = inputs().detach()
    torch.compile(lambda x: solve(lambda z, x: (z / 2 + x).cos(), x, (x + 1,)).value + 1, backend=plain)(x)
    torch.compile(lambda x: fixed_point(lambda z, x: (z / 2 + x).cos(), x, (x + 1,)) + 1, backend=plain)(x)
    assert plain.frame_count <= 4


@pytest.mark.parametrize("compact", [False, True])
def test_a_compiled_cell_is_one_graph_and_the_same_layer(compact):
    cell, x = Cell(), inputs(8)
    compiled = torch.compile(cell, backend="aot_eager", fullgraph=True)
    start = torch.zeros_like(x)
    start[::2] = tight_layer(cell).solve(x).value[::2]  # half of the rows are dropped at once
    targets = [x, *cell.parameters()]
    found = tight_layer(compiled, compact=compact)(x, z0=start)
    expected = tight_layer(cell, compact=compact)(x, z0=start)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(z.sin().sum(), targets) for z in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_second_derivatives_by_autograd_are_refused():
    layer, x = tight_layer(torch.compile(Cell(), backend="aot_eager")), inputs()

    def second():
        (slope,) = torch.autograd.grad(layer(x).sin().sum(), layer.cell.inner.weight, create_graph=True)
        torch.autograd.grad(slope.square().sum(), [x, *layer.parameters()])

    with pytest.raises(RuntimeError, match=r"torch\.compile.*force_eager"):
        second()


def test_a_compiled_cell_under_functional_call_uses_the_parameters_given():
    cell, x = Cell(), inputs().detach()
    layer = tight_layer(torch.compile(cell, backend="aot_eager", fullgraph=True))
    parameters = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    found = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).sum())(parameters)
    assert set(found) == set(parameters)
    value = torch.func.functional_call(layer, parameters, (x,))
    torch.testing.assert_close(value, x.tanh())


def test_a_compiled_layer_trains_as_the_plain_one():
    losses = []
    for compiling in (False, True):
        torch.manual_seed(0)
        layer = Equilibrium(Cell(), gradient=exact(), **TIGHT)
        model = nn.Sequential(layer, nn.Linear(DIM, 1, dtype=torch.float64))
        run = torch.compile(model, backend="aot_eager") if compiling else model
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        x = inputs(16).detach()
        for _ in range(5):
            optimizer.zero_grad()
            loss = (run(x)[:, 0] - x.sum(1)).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_the_compiler_is_imported_only_by_those_who_compile():
    code = (
        "import sys, torch, implicit\n"
        "layer = implicit.Equilibrium(torch.nn.Bilinear(3, 3, 3))\n"
        "layer(torch.zeros(1, 3)).sum().backward()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_gradients_of_an_inductor_cell():
    pytest.importorskip("torch._inductor")
    cell, x = Cell().float(), inputs().detach().float().requires_grad_()
    layer = Equilibrium(torch.compile(cell, fullgraph=True), rtol=1e-6, gradient=ImplicitGradient(rtol=1e-6))
    targets = [x, *cell.parameters()]
    for one, other in zip(
        torch.autograd.grad(layer(x).sin().sum(), targets),
        torch.autograd.grad(unrolled(cell, x).sin().sum(), targets),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Outer(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, z, x):
        return self.part(z, x)


@pytest.mark.parametrize("wrap", [lambda cell: cell, Outer])
def test_the_transforms_of_torch_func_see_through_it(wrap):
    cell, x = Cell(), inputs(2).detach()
    layer = tight_layer(wrap(torch.compile(cell, backend="aot_eager")))
    found = torch.func.hessian(lambda x: layer(x).sin().sum())(x)
    torch.testing.assert_close(found, torch.func.hessian(lambda x: unrolled(cell, x).sin().sum())(x))
