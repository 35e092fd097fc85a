"""Layers in programs that are recorded once and for all."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from implicit import Equilibrium, SplitCell, fixed_point
from solvers import Anderson, Broyden, ConvergenceError, NewtonKrylov, PeacemanRachford, Picard, solve

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
DIM = 4


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(DIM, DIM)

    def forward(self, z, x):
        return torch.tanh(0.5 * self.inner(z) + x)


class Pair(nn.Module):
    def forward(self, z, x):
        return {"a": 0.3 * z["b"] + x, "b": torch.tanh(0.3 * z["a"])}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


def layer(solver, rtol=1e-5):
    return Equilibrium(Cell(), solver=solver, rtol=rtol).eval()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=repr)
def test_the_form_of_fixed_steps_is_exported_for_any_batch(solver):
    plain, x = layer(solver), torch.randn(3, DIM)
    form = plain.exported(x)
    close(form(x), plain(x))
    dynamic = (({0: torch.export.Dim.AUTO},),)
    program = torch.export.export(form, (x,), dynamic_shapes=dynamic, strict=False)
    others = torch.randn(5, DIM) / 2
    close(program.module()(others), plain(others))
    close(torch.compile(form, fullgraph=True, backend="eager")(others), plain(others))


def test_a_trace_replays_plain_steps():
    plain, x = layer(Picard()), torch.randn(3, DIM)
    traced = torch.jit.trace(plain.exported(x), (x,))
    close(traced(x / 2), plain(x / 2))
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot replay Anderson"):
        torch.jit.trace(layer(Anderson()).exported(x), (x,))


def test_onnx_runtime_agrees(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    for solver in (Picard(), Anderson()):
        plain, x = layer(solver), torch.randn(3, DIM)
        path = tmp_path / f"{type(solver).__name__}.onnx"
        torch.onnx.export(plain.exported(x), (x,), path, dynamo=True, verbose=False)
        session = runtime.InferenceSession(str(path))
        found = session.run(None, {session.get_inputs()[0].name: (x / 2).numpy()})[0]
        close(torch.from_numpy(found), plain(x / 2).detach())


def test_states_of_several_tensors_and_warm_starts():
    plain = Equilibrium(Pair(), solver=Picard(), initial=lambda x: {"a": x, "b": x})
    x = torch.randn(3, DIM)
    form = plain.exported(x)
    for key in "ab":
        torch.testing.assert_close(form(x)[key], plain(x)[key], rtol=1e-3, atol=1e-4)
    assert list(form.state_dict()) == list(plain.state_dict())


def test_steps_that_do_not_suffice_are_refused():
    x = torch.randn(3, DIM)
    with pytest.raises(ConvergenceError, match=r"2 steps of Picard.*rtol=1e-05.*pass more steps"):
        layer(Picard()).exported(x, steps=2)
    assert layer(Picard()).exported(x, steps=30).steps == 30
    for steps in (0, 2.0, True):
        with pytest.raises(ValueError, match=f"steps={steps!r} must be an integer of at least 1"):
            layer(Picard()).exported(x, steps=steps)
    expanding = Equilibrium(Cell(), solver=Picard(), max_steps=20)
    with torch.no_grad():
        expanding.cell.inner.weight.copy_(-6 * torch.eye(DIM))
    with pytest.raises(ConvergenceError):
        expanding.exported(0.01 * x)


def test_solvers_without_a_fixed_cost_are_refused():
    class Split(SplitCell):
        def weight(self):
            return torch.zeros(DIM, DIM)

        def shift(self, x):
            return x

    for one in (layer(NewtonKrylov()), Equilibrium(Split(margin=0.5), solver=PeacemanRachford())):
        with pytest.raises(TypeError, match="has no fixed cost per step"):
            one.exported(torch.randn(3, DIM))


def test_the_layer_itself_is_refused_in_words():
    plain, x = layer(Picard()), torch.randn(3, DIM)
    said = r"the equilibrium of Cell cannot be recorded.*layer\.exported"
    with torch.no_grad():
        for record in (
            lambda: torch.jit.trace(plain, (x,)),
            lambda: torch.export.export(plain, (x,), strict=False),
            lambda: make_fx(plain)(x),
        ):
            with pytest.raises(RuntimeError, match=said):
                record()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(RuntimeError, match=f"{said}"):
        plain(mode.from_tensor(x))
    with pytest.raises(RuntimeError, match="meta device"):
        Equilibrium(Cell().to("meta"))(x.to("meta"))
    for whole in (plain, lambda x: fixed_point(plain.cell, x, (x,)), lambda x: solve(plain.cell, x, (x,)).value):
        with pytest.raises(Exception, match=r"number of steps of a solve depends on its data.*layer\.exported"):
            torch.compile(whole, fullgraph=True, backend="eager")(x)
