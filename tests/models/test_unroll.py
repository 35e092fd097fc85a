"""A recurrent cell over a sequence at once, against the loop."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from implicit import ConvergenceWarning, record
from models import Newton, unroll
from solvers import Status
from tests.legacy import Sine

FEATURES, WIDTH = 5, 6
WAYS = [
    Newton(),
    Newton(diagonal=True),
    Newton(diagonal=True, probes=2),
    Newton(damping=0.3),
    Newton(diagonal=True, damping=0.5),
    Newton(damping=1.0),
]


def loop(cell, x, h):
    states = []
    for t in range(x.shape[1]):
        h = cell(x[:, t], h)
        states.append(h)
    if isinstance(h, torch.Tensor):
        return torch.stack(states, 1)
    return tuple(torch.stack(part, 1) for part in zip(*states, strict=True))


class Matrix(nn.Module):
    """`h ↦ tanh(W h) + x`: no shape that PyTorch has, two dims a state."""

    def __init__(self, gain=0.5):
        super().__init__()
        self.weight = nn.Parameter(gain * torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q)

    def forward(self, x, h):
        return (self.weight @ h).tanh() + x[:, :2, None].mT


def recurrence(kind, rows=3, length=30):
    torch.manual_seed(0)
    cell = {"gru": nn.GRUCell, "rnn": nn.RNNCell, "lstm": nn.LSTMCell}.get(kind, lambda *_: Matrix())(FEATURES, WIDTH)
    x = torch.randn(rows, length, FEATURES, requires_grad=True)
    h = torch.randn(*((rows, WIDTH, 2) if kind == "matrix" else (rows, WIDTH)), requires_grad=True)
    other = torch.randn(rows, WIDTH, requires_grad=True)
    return cell, x, (h, other) if kind == "lstm" else h


def leaves(cell, x, h0):
    return [x, *(h0 if isinstance(h0, tuple) else [h0]), *cell.parameters()]


def total(states):
    return sum(part.sin().sum() for part in (states if isinstance(states, tuple) else [states]))


@pytest.mark.parametrize("newton", WAYS, ids=repr)
@pytest.mark.parametrize("kind", ["gru", "rnn", "lstm", "matrix"])
def test_value_and_gradient_are_those_of_the_loop(kind, newton):
    cell, x, h0 = recurrence(kind)
    solution, expected = unroll(cell, x, h0, rtol=1e-11, newton=newton), loop(cell, x, h0)
    assert solution.converged.all()
    found = solution.value if isinstance(solution.value, tuple) else (solution.value,)
    for one, other in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    gradients = (torch.autograd.grad(total(states), leaves(cell, x, h0)) for states in (solution.value, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_second_derivatives_are_those_of_the_loop():
    cell, x, h0 = recurrence("matrix", 2, 6)

    def second(states):
        (first,) = torch.autograd.grad(states.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), leaves(cell, x, h0), allow_unused=True)

    found, expected = second(unroll(cell, x, h0, rtol=1e-12).value), second(loop(cell, x, h0))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("newton", WAYS, ids=repr)
def test_an_empty_batch(newton):
    x, h = torch.zeros(0, 7, FEATURES, requires_grad=True), torch.zeros(0, WIDTH, requires_grad=True)
    solution = unroll(nn.GRUCell(FEATURES, WIDTH), x, h, newton=newton)
    solution.value.sum().backward()
    assert solution.value.shape == (0, 7, WIDTH)
    assert solution.lyapunov_exponent().shape == (0,)
    assert (x.grad.shape, h.grad.shape) == (x.shape, h.shape)


def test_too_few_sweeps_are_said_so():
    with pytest.warns(
        ConvergenceWarning, match=r"raise max_sweeps, loosen rtol, or try newton=Newton\(damping=0.5\)"
    ) as told:
        solution = unroll(
            nn.GRUCell(FEATURES, WIDTH), torch.randn(2, 60, FEATURES), torch.zeros(2, WIDTH), max_sweeps=1
        )
    assert (solution.status == Status.MAX_STEPS).all()
    for text in (str(told[0].message), solution.summary()):
        assert "max_steps" not in text
        assert "spectral radius" not in text


def test_few_sweeps_where_the_recurrence_forgets():
    cell, x, h0 = recurrence("gru", length=200)
    with record() as log:
        solution = unroll(cell, x, h0, rtol=1e-10)
        solution.value.sum().backward()
    assert solution.steps.max() <= 10
    assert log.backward[-1].solution.steps.max() <= 3  # the adjoint equation is linear: one sweep, and a look
    assert solution.lyapunov_exponent().max() < 0


@pytest.mark.parametrize("newton", WAYS, ids=repr)
def test_as_many_sweeps_as_steps_suffice_where_it_is_chaotic(newton):
    torch.manual_seed(0)
    mix = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q

    def cell(x, h):
        return torch.sin(5 * h @ mix + x[:, :1])

    x, h0 = torch.randn(2, 12, FEATURES), torch.randn(2, WIDTH)
    solution = unroll(cell, x, h0, rtol=1e-10, newton=newton)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, loop(cell, x, h0), rtol=1e-7, atol=1e-7)
    assert solution.lyapunov_exponent().min() > 0


def test_the_exponent_is_that_of_the_product_of_jacobians():
    cell, x, h0 = recurrence("rnn", 2, 150)
    exponent = unroll(cell, x, h0, rtol=1e-12).lyapunov_exponent()
    for row in range(2):
        disturbance, h = torch.ones(WIDTH) / WIDTH**0.5, h0[row].detach()
        growth = 0.0
        for t in range(150):
            jacobian = torch.autograd.functional.jacobian(partial(cell, x[row, t].detach()), h)
            disturbance, h = jacobian @ disturbance, cell(x[row, t], h).detach()
            growth += disturbance.norm().log().item()
            disturbance = disturbance / disturbance.norm()
        assert abs(exponent[row].item() - growth / 150) < 1e-8


def test_one_step_one_row_and_no_row():
    cell, x, h0 = recurrence("gru")
    torch.testing.assert_close(
        unroll(cell, x[:1, :1], h0[:1]).value[:, 0], cell(x[:1, 0], h0[:1]), rtol=1e-4, atol=1e-5
    )
    assert unroll(cell, x[:0], h0[:0]).value.shape == (0, 30, WIDTH)
    with torch.no_grad():
        assert not unroll(cell, x, h0).value.requires_grad
    stretched = x.mT.contiguous().mT
    torch.testing.assert_close(unroll(cell, stretched, h0).value, loop(cell, x, h0), rtol=1e-4, atol=1e-5)


def test_single_precision_and_sequences_that_run_away_in_part():
    cell, x, h0 = (part.float() if isinstance(part, (torch.Tensor, nn.Module)) else part for part in recurrence("gru"))
    solution = unroll(cell, x.detach(), h0.detach(), rtol=1e-5)
    torch.testing.assert_close(solution.value, loop(cell, x, h0), rtol=1e-3, atol=1e-4)

    def doubling(x, h):
        return 2 * h + x

    x = torch.ones(2, 300, 3, dtype=torch.float32)
    x[1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solution = unroll(doubling, x, torch.zeros(2, 3, dtype=torch.float32))
    assert solution.status.tolist() == [Status.NON_FINITE, Status.CONVERGED]
    assert (solution.value[1] == 0).all()


BOUNDED = {  # whose guesses overflow on the way
    "bistable": (lambda u, h: h + 0.1 * (h - h**3) + 0.1 * u, [-0.2], 200),
    "logistic": (lambda u, h: 3.9 * h * (1 - h) + 0 * u, [0.3], 60),
    "Lorenz": (
        lambda u, h: (
            h
            + 0.02
            * torch.stack(
                (10 * (h[:, 1] - h[:, 0]), h[:, 0] * (28 - h[:, 2]) - h[:, 1], h[:, 0] * h[:, 1] - 8 / 3 * h[:, 2]), 1
            )
        ),
        [1.0, 1.0, 1.0],
        200,
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("newton", [Newton(), Newton(diagonal=True), Newton(damping=1.0)], ids=repr)
def test_as_many_sweeps_as_steps_suffice_whatever_the_guesses_on_the_way(name, newton):
    cell, start, length = BOUNDED[name]
    u, h = 0.3 * torch.randn(2, length, 1, dtype=torch.float64), torch.tensor([start] * 2, dtype=torch.float64)
    found, states = unroll(cell, u, h, newton=newton).check(), []
    for step in range(length):
        states.append(h := cell(u[:, step], h))
    states = torch.stack(states, 1)
    assert ((found.value - states).norm() / states.norm()).item() < 1e-4
    assert repr(found).startswith("Solution(2 rows: 2 CONVERGED")


def test_a_row_that_is_not_a_number_fails_alone():
    cell, x, h0 = recurrence("gru")
    x = x.detach()
    x[1, 7] = torch.nan
    with pytest.warns(ConvergenceWarning, match="NON_FINITE"):
        solution = unroll(cell, x, h0, rtol=1e-9)
    assert solution.converged.tolist() == [True, False, True]
    torch.testing.assert_close(solution.value[::2], loop(cell, x, h0)[::2], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda cell, x, h: unroll(cell, x[:, :0], h), ValueError, r"x is of shape \(3, 0, 5\).*at least one step"),
        (lambda cell, x, h: unroll(cell, None, h), ValueError, "x is a NoneType"),
        (lambda cell, x, h: unroll(cell, x, h[:2]), ValueError, "h0 has 2 rows, but x has 3"),
        (lambda cell, x, h: unroll(cell, x, h, newton=True), TypeError, r"newton=True: pass Newton\(\)"),
        (lambda cell, x, h: unroll(lambda x, h: h[:, :2], x, h), ValueError, "must keep the shape"),
        (lambda cell, x, h: unroll(cell, x, h, max_sweeps=0), ValueError, "max_sweeps=0"),
        (lambda cell, x, h: Newton(damping=1.5), ValueError, r"damping=1\.5 must be a number from 0 to 1"),
        (lambda cell, x, h: Newton(diagonal=1), TypeError, "diagonal=1 must be True or False"),
    ],
)
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call(*recurrence("gru"))


class Hidden(nn.GRUCell):
    def __init__(self, part):
        super().__init__(FEATURES, WIDTH)
        self.part = part

    def forward(self, x, h):
        if self.part == "checkpoint":
            return checkpoint(super().forward, x, h, use_reentrant=False)
        return Sine.apply(super().forward(x, h))


@pytest.mark.parametrize("newton", WAYS, ids=repr)
@pytest.mark.parametrize("part", ["checkpoint", "legacy function"])
def test_cells_that_torch_func_does_not_follow(part, newton):
    torch.manual_seed(0)
    cell, x, h0 = Hidden(part).double(), torch.randn(2, 20, FEATURES).double(), torch.randn(2, WIDTH).double()
    wanted = list(cell.parameters())
    solution = unroll(cell, x, h0, rtol=1e-11, newton=newton)
    expected = loop(cell, x, h0)
    torch.testing.assert_close(solution.value, expected, rtol=1e-8, atol=1e-9)
    found = torch.autograd.grad(total(solution.value), wanted)
    torch.testing.assert_close(found, torch.autograd.grad(total(expected), wanted), rtol=1e-5, atol=1e-8)
    assert (solution.lyapunov_exponent() < 0).all()


def test_transforms_around_it_are_refused_in_words():
    cell, x, h0 = recurrence("gru")
    with pytest.raises(RuntimeError, match=r"unroll has no rule for torch\.func's transforms"):
        torch.func.grad(lambda x: unroll(cell, x, h0.detach()).value.sum())(x.detach())


@pytest.mark.parametrize("tracked", [True, False])
def test_a_log_holds_the_sweeps(tracked):
    cell, x, h0 = recurrence("gru")
    with torch.set_grad_enabled(tracked), record() as log:
        solution = unroll(cell, x, h0)
    (entry,) = log.forward
    assert entry.name == "unroll"
    assert torch.equal(entry.solution.steps, solution.steps)
    assert solution.steps.min() > 1
    broken = x.detach().clone()
    broken[1, 5] = torch.nan
    with torch.set_grad_enabled(tracked), pytest.warns(ConvergenceWarning, match="unroll, forward solve") as told:
        value = unroll(nn.GRUCell(FEATURES, WIDTH), broken, h0).value
    assert "diagnose" not in str(told[0].message)
    if tracked:
        with pytest.warns(ConvergenceWarning, match="This is the adjoint recurrence, solved to 1e-06") as told:
            value[0].sum().backward()
        assert "unconverged" not in str(told[0].message)


def test_one_probe_is_exact_where_entries_do_not_mix():
    class Leaky(nn.Module):
        """`h ↦ tanh(a h + x)`, entry by entry."""

        def forward(self, x, h):
            return torch.tanh(torch.linspace(-0.9, 0.9, FEATURES) * h + x)

    x, h0 = torch.randn(2, 50, FEATURES), torch.zeros(2, FEATURES)
    ways = Newton(), Newton(diagonal=True), Newton(diagonal=True, probes=1)
    full, exact, probed = (unroll(Leaky(), x, h0, rtol=1e-6, newton=newton) for newton in ways)
    assert full.steps.tolist() == exact.steps.tolist() == probed.steps.tolist()
    torch.testing.assert_close(probed.value, full.value)
    for newton, words in (({"probes": 1}, "pass diagonal=True"), ({"diagonal": True, "probes": 0}, "at least 1")):
        with pytest.raises(ValueError, match=words):
            Newton(**newton)


def test_plain_sweeps_form_no_jacobian(monkeypatch):
    monkeypatch.setattr(torch.func, "vjp", None)
    cell, x, h0 = recurrence("gru")
    plain = unroll(cell, x, h0, newton=Newton(damping=1.0))
    plain.value.sum().backward()
    torch.testing.assert_close(plain.value, loop(cell, x, h0), rtol=1e-4, atol=1e-4)
