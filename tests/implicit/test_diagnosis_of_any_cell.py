"""Whatever a cell holds or does, `diagnose` looks at it, raises nothing and leaves no trace."""

import functools
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from implicit import Equilibrium
from implicit.copies import copied
from implicit.diagnostics import diagnose, gradient_audit, path_independence, spectral_radius
from implicit.monitoring import Monitor
from solvers import Monotone

BATCH, WIDTH = 6, 8


class Cell(nn.Module):
    def __init__(self, extra=None, **held):
        super().__init__()
        self.inner, self.extra = nn.Linear(WIDTH, WIDTH), extra
        for name, value in held.items():
            setattr(self, name, value)
        with torch.no_grad():
            self.inner.weight *= 0.5 / torch.linalg.matrix_norm(self.inner.weight, 2)

    def forward(self, z, x):
        out = self.inner(z) * getattr(self, "mask", 1.0)
        return torch.tanh((out if self.extra is None else self.extra(out)) + x)


class Uncopied(torch.Tensor):
    def __deepcopy__(self, memo):
        raise RuntimeError("not this one")


class RefusesCopies(Cell):
    def __deepcopy__(self, memo):
        raise RuntimeError("not this one")


class NeedsTheBatch(Cell):
    def forward(self, z, x):
        if len(z) != BATCH:
            raise AssertionError(f"a batch of {BATCH}")
        return super().forward(z, x)


class Captures(nn.Module):
    def __init__(self):
        super().__init__()
        mask = torch.rand(BATCH, WIDTH)
        self.map = lambda z, x: torch.tanh(0.5 * z * mask + x)

    def forward(self, z, x):
        return self.map(z, x)


def patched(cell):
    cell.forward = functools.partial(type(cell).forward, cell)
    return cell


def made_in_inference_mode():
    with torch.inference_mode():
        return Cell(mask=torch.ones(BATCH, WIDTH))


CELLS = {
    "mask": lambda: Cell(mask=torch.ones(BATCH, WIDTH)),
    "mask that wants a gradient": lambda: Cell(mask=torch.ones(BATCH, WIDTH, requires_grad=True)),
    "mask with a graph": lambda: Cell(mask=nn.Linear(WIDTH, WIDTH)(torch.randn(BATCH, WIDTH)).sigmoid()),
    "mask that refuses copies": lambda: Cell(mask=torch.ones(BATCH, WIDTH).as_subclass(Uncopied)),
    "mask in a closure": Captures,
    "cell that refuses copies": RefusesCopies,
    "cell for just this batch": NeedsTheBatch,
    "lock": lambda: Cell(lock=threading.Lock()),
    "generator": lambda: Cell(items=(i for i in range(3))),
    "random generator": lambda: Cell(random=torch.Generator()),
    "list with a lock": lambda: Cell(things=[{"lock": threading.Lock()}, torch.ones(2)]),
    "spectral norm and a lock": lambda: Cell(spectral_norm(nn.Linear(WIDTH, WIDTH)), lock=threading.Lock()),
    "weight norm and a lock": lambda: Cell(weight_norm(nn.Linear(WIDTH, WIDTH)), lock=threading.Lock()),
    "patched forward and a lock": lambda: patched(Cell(lock=threading.Lock())),
    "made in inference mode": made_in_inference_mode,
}


def trace(model):
    """Everything that a look might change."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        [(module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        torch.get_rng_state(),
    )


def assert_no_trace(model, before):
    after = trace(model)
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])
    for name, value in after[0].items():
        assert torch.equal(value, before[0][name]), name


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("compact", [False, None])
@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_a_healthy_layer_has_no_finding_whatever_it_holds_and_no_trace_is_left(make, compact):
    layer, x = Equilibrium(make(), compact=compact), torch.randn(BATCH, WIDTH)
    before = trace(layer)
    assert diagnose(layer, x) == []
    assert_no_trace(layer, before)
    with torch.inference_mode():
        assert diagnose(layer, x.clone()) == []
    assert_no_trace(layer, before)


def test_buffers_that_a_copy_leads_back_to_are_left_as_they_were():
    cell = Cell(nn.BatchNorm1d(WIDTH))
    cell.forward = lambda z, x: torch.tanh(0.5 * cell.extra(cell.inner(z)) + x)
    layer, x = Equilibrium(cell, compact=False), torch.randn(BATCH, WIDTH)
    before = trace(layer)
    assert diagnose(layer, x)[0].name == "rows coupled through the batch"
    assert_no_trace(layer, before)


class Two(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = Equilibrium(first), Equilibrium(second)

    def forward(self, x):
        return self.second(self.first(x))


def test_a_layer_that_cannot_be_copied_or_solved_does_not_hide_another():
    class Runs(Cell):
        def forward(self, z, x):
            return z + 1

    model, x = Two(Cell(lock=threading.Lock()), Runs()), torch.randn(BATCH, WIDTH)
    before = trace(model)
    findings = diagnose(model, x)
    assert {(finding.layer, finding.name) for finding in findings} >= {("second", "every row diverges")}
    assert all(finding.layer == "second" for finding in findings)
    assert_no_trace(model, before)

    class Fails(Cell):
        def forward(self, z, x):
            raise KeyError("on purpose")

    failure, *others = diagnose(Two(Runs(), Fails()), x)
    assert (failure.name, failure.evidence) == ("the model fails", "KeyError: 'on purpose'")
    assert others[0].name == "every row diverges"
    (alone,) = diagnose(Equilibrium(Fails()), x)
    assert str(alone).startswith("the layer cannot be solved: KeyError: 'on purpose'. Fix that")


@pytest.mark.parametrize("rows", [0, 1])
def test_batches_of_no_row_and_of_one(rows):
    assert diagnose(Equilibrium(Cell(lock=threading.Lock())), torch.randn(rows, WIDTH)) == []


def test_states_and_inputs_in_lists_and_dicts():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, z, inputs):
            return {"a": [torch.tanh(0.3 * self.inner(z["a"][0]) + inputs["x"])], "b": 0.3 * z["b"].cos()}

    x = torch.randn(BATCH, WIDTH)
    layer = Equilibrium(Nested(), initial=lambda u: {"a": [0 * u["x"]], "b": torch.zeros(len(u["x"]), 3)})
    assert diagnose(layer, {"x": x, "unused": None}) == []
    assert gradient_audit(layer, {"x": x, "unused": None}).relative_error < 1e-2


@pytest.mark.parametrize("batch", [7, 8])
def test_an_input_as_long_as_the_batch_may_be_no_rows(batch):
    class Causal(nn.Module):
        def forward(self, z, x, y, mask):
            return torch.tanh(0.5 * (z.mean(-1, keepdim=True).mT.masked_fill(mask, 0.0) @ z) / 8 + x + y)

    x, y = torch.randn(2, batch, 8, 4)
    assert diagnose(Equilibrium(Causal(), compact=False), x, y, torch.ones(8, 8, dtype=torch.bool).triu(1)) == []


def test_a_check_that_fails_is_said_to_be_left_out_and_the_others_are_made():
    class Runs(Cell):
        def forward(self, z, x):
            if torch.is_grad_enabled():
                raise RuntimeError("no graphs\nhere")
            return z + 1

    names = [finding.name for finding in diagnose(Equilibrium(Runs()), torch.randn(BATCH, WIDTH))]
    assert names == ["every row diverges", "check left out", "check left out"]
    found = diagnose(Equilibrium(Runs()), torch.randn(BATCH, WIDTH))[1]
    assert found.evidence == "spectral radius: RuntimeError: no graphs"
    (monotone,) = diagnose(Equilibrium(Cell(), solver=Monotone()), torch.randn(BATCH, WIDTH))
    assert monotone.name == "check left out"
    assert monotone.evidence.startswith("spectral radius: ")


def test_what_a_copy_shares_and_what_it_does_not():
    lock = threading.Lock()
    graph = nn.Linear(2, 2)(torch.ones(1, 2))
    cell = Cell(lock=lock, mask=graph, seen=[1, {"lock": lock, "weight": None}])
    cell.seen[1]["weight"] = cell.inner.weight
    twin = copied(cell)
    assert twin.lock is lock
    assert twin.mask.requires_grad and twin.mask.is_leaf  # noqa: PT018
    assert torch.equal(twin.mask, graph)
    assert twin.inner.weight is not cell.inner.weight
    assert twin.seen[1]["weight"] is twin.inner.weight
    twin.seen.append(2)
    assert len(cell.seen) == 2
    twin.double()
    assert cell.inner.weight.dtype == torch.get_default_dtype()


def test_the_other_diagnostics_take_masks_of_the_batch_and_what_cannot_be_copied():
    mask, x = torch.rand(BATCH, 150), torch.randn(BATCH, 150)  # beyond what is looked at densely, row by row

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask, self.lock = mask, threading.Lock()
            self.slope = nn.Parameter(torch.linspace(0.1, 0.9, 150))

        def forward(self, z, x):
            return self.slope * self.mask * z + x

    layer = Equilibrium(Wide(), compact=False)
    expected = (layer.cell.slope * mask).abs().amax(dim=1).double().cpu()
    torch.testing.assert_close(spectral_radius(layer.cell, x, (x,)), expected, rtol=1e-5, atol=0)
    assert gradient_audit(layer, x).relative_error < 1e-2
    assert path_independence(layer, x, starts=2).spread.max() < 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Monitor(layer, rows=2) as monitor:
            layer(x).sum().backward()
    assert monitor.samples[0].spectral_radius == pytest.approx(expected.max().item(), rel=1e-5)
    assert monitor.samples[0].gradient_cosine > 0.9999
