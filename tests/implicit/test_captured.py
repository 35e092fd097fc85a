"""Recorded stretches find what `Eager` finds, whatever has changed since they were recorded.

On a processor a recording is called and not replayed, but from the same buffers and into the same places.
"""

import copy
import gc
import io
import threading
import warnings
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

import implicit
from implicit import Equilibrium, ImplicitGradient, Looped, fixed_point, record
from implicit.pure_problem import PureProblem
from implicit.sources import backward_source
from solvers import (
    GMRES,
    Anderson,
    Broyden,
    Captured,
    Eager,
    Monotone,
    NewtonKrylov,
    Picard,
    Reversible,
    Status,
    root,
    solve,
)
from solvers.loops import eager as loops
from solvers.loops.captures import LIMIT
from solvers.loops.graphs import Called
from solvers.loops.recording import RecordingError
from solvers.loops.tape import Tape
from solvers.pipeline import Pipeline
from solvers.problem import Problem
from solvers.state import Layout, tree_leaves

DIM, ROWS = 12, 5
TIGHT = {"rtol": 1e-9, "atol": 0.0, "max_steps": 200}


class Cell(nn.Module):
    def __init__(self, parametrized=False, gain=0.4):
        super().__init__()
        self.inner, self.inject = nn.Linear(DIM, DIM).double(), nn.Linear(DIM, DIM).double()
        with torch.no_grad():
            self.inner.weight.mul_(gain / torch.linalg.matrix_norm(self.inner.weight, 2))
        if parametrized:
            spectral_norm(self.inner)
        self.factor, self.table, self.shifts = 1.0, {"factor": 1.0}, [torch.zeros(DIM, dtype=torch.float64)]

    def forward(self, z, x):
        factor = 0.5 * self.factor * self.table["factor"]
        return torch.tanh(factor * self.inner(z) + self.inject(x) + self.shifts[0].to(x))


def layers(cell, solver=Anderson(), backward=None, every=4):
    """The same layer with each loop."""
    return [
        Equilibrium(
            cell,
            solver=solver,
            compact=False,
            loop=loop,
            gradient=ImplicitGradient(backward, rtol=1e-9, max_steps=200, loop=loop),
            **TIGHT,
        )
        for loop in (Eager(every), Captured(every))
    ]


def inputs():
    return torch.randn(ROWS, DIM, dtype=torch.float64) * torch.linspace(0.1, 3, ROWS, dtype=torch.float64)[:, None]


def same(eager, captured, *x, modules=None):
    """Solutions, records of both passes, and gradients."""
    found, expected = captured.solve(*x), eager.solve(*x)
    assert torch.equal(found.status, expected.status)
    assert torch.equal(found.steps, expected.steps)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found.trace, expected.trace, rtol=1e-5, atol=1e-12, equal_nan=True)
    gradients, steps = [], []
    for layer in (eager, captured):
        with record() as log:
            loss = layer(*x).sin().sum() + layer(*x).square().sum()  # twice in a graph
            gradients.append(torch.autograd.grad(loss, list((modules or layer).parameters())))
        steps.append([line.solution.steps.tolist() for line in (*log.forward, *log.backward)])
    assert steps[0] == steps[1]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def tapes(layer):
    return [tape for tape in layer._captures._tapes.values() if tape is not None]


@pytest.mark.parametrize(
    "solver",
    [Picard(), Picard(0.7), Anderson(), Anderson(3, 1), Broyden(5), GMRES(7), Monotone(3), Reversible()],
    ids=repr,
)
@pytest.mark.parametrize("backward", [None, Anderson(4), Broyden(), GMRES()], ids=repr)
def test_a_training_is_the_eager_one(solver, backward):
    cell = Cell()
    eager, captured = layers(cell, solver, backward)
    optimizer = torch.optim.Adam(cell.parameters(), 1e-2)
    for _ in range(4):
        x = inputs()
        same(eager, captured, x)
        optimizer.zero_grad()
        captured(x).square().sum().backward()
        optimizer.step()
    assert len(tapes(captured)) == 2, "forward and backward"
    assert all(tape._recordings for tape in tapes(captured)), "stretches were replayed"


def test_the_backward_solve_is_recorded_as_the_layer_unless_its_solver_cannot_be():
    for gradient, recorded in (
        (ImplicitGradient(), 2),
        (ImplicitGradient(GMRES()), 2),
        (ImplicitGradient(NewtonKrylov()), 1),
        (ImplicitGradient(loop=Eager()), 1),
    ):
        layer = Equilibrium(Cell(), loop=Captured(), gradient=gradient, rtol=1e-6)
        for _ in range(3):
            layer(inputs()).sum().backward()
        assert len(layer._captures) == recorded


@pytest.mark.parametrize("every", [1, 2, 7, 300])
def test_any_number_of_steps_a_stretch(every):
    eager, captured = layers(Cell(), Anderson(3), every=every)
    for _ in range(4):
        same(eager, captured, inputs())


def test_rows_that_fail_and_runs_that_end_early():
    class Wild(Cell):
        def forward(self, z, x):
            image = super().forward(z, x)
            return torch.where(x[:, :1] > 2, 3 * z + 1, torch.where(x[:, :1] < -2, z * torch.nan, image))

    eager, captured = layers(Wild(), Anderson())
    for steps in (200, 200, 200, 3, 1, 50):
        x = inputs()
        x[0], x[1] = 5.0, -5.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = (layer.solve(x, max_steps=steps) for layer in (captured, eager))
        assert torch.equal(found.status, expected.status)
        assert torch.equal(found.steps, expected.steps)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-8, atol=1e-9, equal_nan=True)


@pytest.fixture
def pipelines(monkeypatch):
    """Those that were made, with what they did."""
    made = []

    class Watched(Pipeline):
        def __init__(self, loop, foresight):
            super().__init__(loop, foresight)
            self.begun_ahead, self.first, self.lengths = 0, 0, set()
            made.append(self)

        def begun(self, *arguments):
            stretch = super().begun(*arguments)
            self.first = len(stretch.points)
            return stretch

        def next(self, *arguments):
            stretch = super().next(*arguments)
            self.begun_ahead += self.ahead is not None
            self.lengths.add(len(stretch.points))
            return stretch

    monkeypatch.setattr("solvers.iterate.Pipeline", Watched)
    return made


class Slow(Cell):
    """150 steps to ten digits."""

    def forward(self, z, x):
        return 0.85 * z + 0.15 * super().forward(z, x)


@pytest.mark.parametrize("solver", [Picard(), Anderson(3), Broyden(4)], ids=repr)
@pytest.mark.parametrize("small", [True, False])
def test_stretches_are_begun_ahead_where_more_will_be_needed(pipelines, monkeypatch, solver, small):
    """And long ones where rows are far from done, and a look would take longer than the steps."""
    if not small:
        monkeypatch.setattr("solvers.loops.captured.MOST", 5 * ROWS * DIM)
    eager, captured = layers(Slow(), solver, Picard(), every=3)
    for _ in range(6):
        same(eager, captured, inputs())
    plain = [pipeline for pipeline in pipelines if isinstance(pipeline.loop, Eager)]
    others = [pipeline for pipeline in pipelines if not isinstance(pipeline.loop, Eager)]
    assert max(pipeline.begun_ahead for pipeline in others) >= 3
    assert not any(pipeline.begun_ahead for pipeline in plain)
    assert max(max(pipeline.lengths, default=0) for pipeline in plain) <= 3
    lengths = set().union(*(pipeline.lengths for pipeline in others))
    assert 12 <= max(lengths) <= 30 if small else max(lengths) <= 3
    if solver == Picard():  # nothing was begun in vain
        assert all(pipeline.foresight for pipeline in others)


@pytest.fixture
def shared_memory(monkeypatch):
    """On a processor, too, a replay spoils what other recordings of its pool have left, as CUDA graphs may."""
    record_it, replay, made = Tape._record, Called.replay, {}

    def noted(self, function):
        recording = record_it(self, function)
        made[recording] = self, self._turn
        return recording

    def spoiling(self):
        tape, pool = made[self]
        lasting = [tape.z, tape.best, *tree_leaves([tuple(start)[2:5] for start in tape._starts.values()])]
        lasting += [point for start in tape._starts.values() for point in start.points]
        kept = {tensor.data_ptr() for tensor in lasting if isinstance(tensor, torch.Tensor)}
        for other, place in made.items():
            if other is not self and place == (tape, pool):
                for tensor in (*other._result.points, other._result.norms):
                    if tensor.data_ptr() not in kept:
                        tensor.fill_(torch.nan)
        return replay(self)

    monkeypatch.setattr(Tape, "_record", noted)
    monkeypatch.setattr(Called, "replay", spoiling)
    return made


@pytest.mark.parametrize("solver", [Picard(), Anderson(3), Broyden(4)], ids=repr)
def test_recordings_that_follow_each_other_share_no_memory(shared_memory, solver):
    eager, captured = layers(Slow(), solver, Picard(), every=3)
    for _ in range(6):
        same(eager, captured, inputs())
    if inputs().device.type == "cpu":
        assert len(shared_memory) > 6


def test_a_tolerance_of_zero_is_as_good_as_any():
    class Turning(nn.Module):
        def forward(self, z, x):
            return 1e-3 * x - 0.2 * z  # residuals are larger than images

    layer = Equilibrium(Turning(), solver=Picard(), rtol=0.0, atol=0.0, max_steps=9, compact=False, loop=Captured(2))
    for _ in range(3):
        assert (layer.solve(inputs(), z0=torch.ones_like(inputs())).steps == 9).all()


def test_a_solve_like_the_last_ends_its_budget_with_one_look(pipelines):
    layer = Equilibrium(Slow().double(), solver=Picard(), rtol=1e-12, max_steps=29, compact=False, loop=Captured(4))
    x = inputs()
    for _ in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = layer.solve(x)
    assert solution.steps.max() == 29
    assert pipelines[-1].first == 29  # 1 + 4, and 24 begun with them
    assert pipelines[-1].lengths == set()


def test_where_rows_begin_anew_the_next_solve_is_not_begun_twice(pipelines):
    """Broyden's method forgets its history in this cell, so that what was begun ahead is in vain."""

    class Rough(nn.Module):
        def forward(self, z, x):
            return torch.where(z.norm(dim=1, keepdim=True) > 2, 1e5 * z, 1.1 * z + x)

    layer = Equilibrium(Rough(), solver=Broyden(4), max_steps=60, compact=False, loop=Captured(3))
    made = []
    for _ in range(8):
        before = len(pipelines)
        layer.solve(0.1 * torch.ones(2, DIM, dtype=torch.float64))
        made.append(len(pipelines) - before)
    assert 2 in made, made
    assert made[-1] == 1, made


@pytest.mark.parametrize("solver", [Picard(), Anderson(3), Broyden(4)], ids=repr)
def test_what_was_begun_in_vain_is_begun_anew(pipelines, solver):
    """Rows creep, until they step into a trap that throws them far away: then a stretch has been begun too many."""

    class Trap(Cell):
        def forward(self, z, x):
            image = 0.97 * z + 0.05 * torch.tanh(self.inner(z)) + x
            size = z.norm(dim=1, keepdim=True)
            return torch.where((size > 9) & (size < 12), 1e7 * image, image)

    eager, captured = layers(Trap(), solver, every=3)
    harmless = 0.01 * torch.rand(ROWS, DIM, dtype=torch.float64)
    for x in [harmless] * 4 + [30 * harmless + 0.3, harmless]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = captured.solve(x), eager.solve(x)
        assert torch.equal(found.status, expected.status)
        assert torch.equal(found.steps, expected.steps)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-8, atol=1e-8, equal_nan=True)
    if solver == Picard():
        assert any(not pipeline.foresight for pipeline in pipelines), "it has been begun anew"


class Logarithm(nn.Module):
    """Finite for z > −1 only, so that solvers leap out of where it is."""

    def forward(self, z, a, b):
        return a * torch.log1p(z) + b


class Cubic(nn.Module):
    def forward(self, z, a, b):
        return a * z * (1 - z * z / 3) + b


@pytest.mark.parametrize("cell", [Logarithm(), Cubic()], ids=["logarithm", "cubic"])
@pytest.mark.parametrize(("solver", "every"), [(Anderson(), 1), (Anderson(), 3), (Broyden(), 2), (Monotone(), 16)])
def test_rows_that_begin_anew_within_a_long_stretch(cell, solver, every):
    """Also if they have stopped before its end."""
    options = {"solver": solver, "max_steps": 60, "compact": False}
    options["initial"] = lambda a, b: torch.full_like(b, 0.1)
    plain, recorded = (Equilibrium(cell, loop=loop, **options) for loop in (Eager(every), Captured(every)))
    generator = torch.Generator().manual_seed(0)
    converged = 0
    for _ in range(40):
        a, b = (torch.randn(1, 3, generator=generator, dtype=torch.float64) for _ in range(2))
        expected = plain.solve(4 * a[:, :1].abs(), b)
        found = recorded.solve(4 * a[:, :1].abs(), b)
        assert found.status.tolist() == expected.status.tolist()
        assert found.steps.tolist() == expected.steps.tolist()
        torch.testing.assert_close(found.value, expected.value, rtol=1e-6, atol=1e-6, equal_nan=True)
        converged += int(expected.converged)
    assert converged > 0


@pytest.mark.parametrize("every", [1, 2, 8])
def test_norms_out_of_range_in_recordings(every):
    x = 1e-170 * torch.ones(2, 3, dtype=torch.float64)  # whose squares are 0
    affine = nn.Linear(3, 3, bias=False, dtype=torch.float64).requires_grad_(False)
    affine.weight.copy_(0.9 * torch.eye(3, dtype=torch.float64))

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.affine = affine

        def forward(self, z, x):
            return self.affine(z) + x

    layer = Equilibrium(Tiny(), solver=Picard(), loop=Captured(every), atol=0.0, compact=False, max_steps=300)
    for _ in range(4):
        solution = layer.solve(x)
        assert solution.converged.all()
        torch.testing.assert_close(solution.value / 1e-170, torch.full_like(x, 10.0), rtol=2e-3, atol=0)


@pytest.mark.parametrize("solver", [Picard(), Anderson(3)], ids=repr)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_norms_out_of_the_range_of_single_precision_in_recordings(solver, scale):
    """The solve continues in double precision, from the start and not from where the first stretch has ended."""
    affine = nn.Linear(3, 3, bias=False).requires_grad_(False)
    affine.weight.copy_(0.3 * torch.eye(3))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.affine = affine

        def forward(self, z, x):
            return self.affine(z) + x

    x = scale * torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    options = {"solver": solver, "atol": 0.0, "compact": False}
    plain, recorded = (Equilibrium(Scaled(), loop=loop, **options) for loop in (Eager(8), Captured(8)))
    for _ in range(4):
        expected, found = plain.solve(x), recorded.solve(x)
        assert found.converged.all()
        assert found.steps.tolist() == expected.steps.tolist()
        torch.testing.assert_close(found.value / scale, x / scale / 0.7, rtol=2e-4, atol=0)


@pytest.mark.parametrize("every", [1, 8])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_budget_shorter_than_a_stretch(every, scale, most):
    calls = []

    class Counted(nn.Module):
        def forward(self, z, x):
            calls.append(1)
            return 0.01 * z + x

    x = scale * torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    options = {"solver": Picard(), "atol": 0.0, "rtol": 1e-12, "compact": False, "max_steps": most}
    plain, recorded = (Equilibrium(Counted(), loop=loop, **options) for loop in (Eager(every), Captured(every)))
    for _ in range(4):
        expected, found = plain.solve(x), recorded.solve(x)
        assert found.status.tolist() == expected.status.tolist() == [Status.MAX_STEPS] * 2
        assert found.steps.tolist() == expected.steps.tolist()
        torch.testing.assert_close(found.value, expected.value)
        torch.testing.assert_close(found.residual, expected.residual)
    calls.clear()
    Equilibrium(Counted(), loop=Captured(1000), **options).solve(x)
    recorded.loop = Captured(1000)
    for _ in range(3):
        recorded.solve(x)
    assert len(calls) < 12 * most + 12


def test_a_tolerance_of_nothing():
    class Halving(nn.Module):
        def forward(self, z, x):
            return 0.5 * z * x

    x = torch.ones(1, 3, dtype=torch.float64)
    options = {"solver": Picard(), "rtol": 0.0, "atol": 0.0, "compact": False, "initial": lambda x: 1e-10 * x}
    plain, recorded = (Equilibrium(Halving(), loop=loop, **options) for loop in (Eager(8), Captured()))
    for _ in range(3):
        assert recorded.solve(x).steps.tolist() == plain.solve(x).steps.tolist()


def replaced(cell):
    cell.inject.weight = nn.Parameter(torch.randn_like(cell.inject.weight))


def loaded(cell):
    cell.load_state_dict({name: value + 0.05 for name, value in cell.state_dict().items()})


def set_data(cell):
    cell.inject.bias.data = torch.randn_like(cell.inject.bias)


def changed_attribute(cell):
    cell.factor = 0.3


def changed_dict(cell):
    cell.table["factor"] = 0.2


def replaced_in_list(cell):
    cell.shifts[0] = torch.ones(DIM, dtype=torch.float64)


def hooked(cell):
    cell.inject.register_forward_hook(lambda module, args, output: output + 0.3)


def other_part(cell):
    cell.inject = nn.Linear(DIM, DIM).double()


def frozen(cell):
    cell.inject.bias.requires_grad_(False)
    cell.inject.bias += 1


@pytest.mark.parametrize(
    "change", [replaced, loaded, set_data, changed_attribute, changed_dict, replaced_in_list, hooked, other_part]
)
@pytest.mark.parametrize("parametrized", [False, True])
def test_nothing_is_stale(change, parametrized):
    cell = Cell(parametrized).eval()
    eager, captured = layers(cell)
    for _ in range(3):
        same(eager, captured, inputs())
    change(cell)
    for _ in range(3):
        same(eager, captured, inputs())


def test_a_frozen_part_that_is_written_to_is_not_stale():
    cell = Cell()
    eager, captured = layers(cell)
    for step in range(6):
        x = inputs()
        torch.testing.assert_close(captured(x), eager(x), rtol=1e-9, atol=1e-9)
        if step == 2:
            frozen(cell)


def test_shapes_dtypes_modes_and_contexts():
    cell = nn.Sequential()
    cell = Cell(parametrized=True)
    eager, captured = layers(cell)
    for dtype in (torch.float64, torch.float32, torch.float64):
        cell.to(dtype)
        for layer in (eager, captured):
            layer.rtol = 1e-9 if dtype == torch.float64 else 1e-4
        for mode in (True, False):
            cell.train(mode)
            for rows in (3, 4, 3):
                x = torch.randn(rows, DIM, dtype=dtype)
                state = copy.deepcopy(cell.state_dict())
                found = [torch.no_grad()(captured)(x) for _ in range(3)]
                cell.load_state_dict(state)
                for value in found:
                    torch.testing.assert_close(value, torch.no_grad()(eager)(x), rtol=3e-3, atol=3e-3)
                    break  # in training mode spectral normalisation moves on
    assert len(captured._captures._tapes) <= LIMIT


@pytest.mark.parametrize("order", ["iiinn", "iiit", "ninin", "nnnii", "ttti"])
def test_what_inference_mode_recorded_serves_there_alone(order):
    eager, captured = layers(Cell())
    for mode in order:
        x = inputs()
        with {"i": torch.inference_mode, "n": torch.no_grad, "t": torch.enable_grad}[mode]():
            found, expected = captured(x), eager(x)
        if mode == "t":
            found.sum().backward()
        torch.testing.assert_close(found.clone(), expected.clone(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("solver", [Picard(), Anderson(3), Broyden(4), GMRES(5)], ids=repr)
def test_nothing_is_compared_on_the_host_while_recording(monkeypatch, solver, mode):
    """On a card that would end the capture, so the layer would run without graphs from then on."""
    equal, read = torch.equal, []

    def noted(*tensors):
        read.append(loops.recorded())
        return equal(*tensors)

    monkeypatch.setattr(torch, "equal", noted)
    _, captured = layers(Cell(), solver, solver)
    for _ in range(4):
        with mode():
            found = captured(inputs())
        if found.requires_grad:
            found.sum().backward()
    assert any(tape._beginning is not None for tape in tapes(captured))
    assert not any(read)


def test_iterates_of_rows_that_are_not_finite():
    class Failing(Cell):
        def forward(self, z, x):
            return torch.where(x[:, :1] > 5, z * torch.nan, super().forward(z, x))

    eager, captured = layers(Failing())
    for _ in range(4):
        x = inputs()
        x[1] = 6
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = (layer.iterates(x, at=(0, 3, 9)) for layer in (captured, eager))
        for one, other in zip(found, expected, strict=True):
            assert one.isfinite().all()
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_within_autocast():
    cell = Cell().float()
    eager, captured = layers(cell)
    for layer in (eager, captured):
        layer.rtol = 1e-2
    kind = torch.get_default_device().type
    for inside in (True, False, True, True, False):
        x = inputs().float()
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=inside):
            found, expected = captured.solve(x), eager.solve(x)
        assert torch.equal(found.status, expected.status)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-6, atol=1e-6)


def test_arguments_that_are_no_floats():
    class Chooser(Cell):
        def forward(self, z, x, chosen, twice):
            image = super().forward(z, x[:, chosen])
            return 0.5 * image if twice else image

    eager, captured = layers(Chooser())
    for twice in (True, False, True, True, True, False, False, False):
        chosen = torch.randperm(DIM)
        x = inputs()
        torch.testing.assert_close(captured(x, chosen, twice), eager(x, chosen, twice), rtol=1e-9, atol=1e-9)


def test_a_state_that_is_a_tuple_and_a_given_start():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = Cell()

        def forward(self, z, x):
            return {"one": self.cell(z["two"], x), "two": 0.5 * z["one"] + 0.1}

    cell = Pair()
    eager, captured = layers(cell)
    for _ in range(4):
        x = inputs()
        start = {"one": torch.randn_like(x), "two": torch.randn_like(x)}
        found, expected = (layer(x, z0=start) for layer in (captured, eager))
        for name in ("one", "two"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-8, atol=1e-8)


def test_values_outlast_later_solves():
    _, captured = layers(Cell())
    kept = []
    for _ in range(5):
        x = inputs()
        solution, early = captured.solve(x), captured.iterates(x, at=(2, 6))
        kept.append((solution.value, solution.value.clone(), early, tuple(each.clone() for each in early)))
    for value, then, early, earlier in kept:
        assert torch.equal(value, then)
        assert all(map(torch.equal, early, earlier))


def test_second_derivatives_and_transforms():
    eager, captured = layers(Cell())
    x = inputs().requires_grad_()
    for _ in range(3):
        found = []
        for layer in (eager, captured):
            (first,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), x)[0])
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)
        rows = [torch.func.vmap(torch.func.grad(partial(_summed, layer)))(x.detach()) for layer in (eager, captured)]
        torch.testing.assert_close(*rows, rtol=1e-6, atol=1e-8)


def _summed(layer, row):
    return layer(row[None]).sin().sum()


def test_two_layers_one_within_the_other():
    class Outer(nn.Module):
        def __init__(self, loop):
            super().__init__()
            self.inner = Equilibrium(cell, loop=loop, compact=False, **TIGHT)

        def forward(self, z, x):
            return 0.3 * self.inner(0.5 * z + x)

    cell = Cell()
    eager, captured = (
        Equilibrium(Outer(loop), loop=loop, compact=False, gradient=ImplicitGradient(rtol=1e-9, loop=loop), **TIGHT)
        for loop in (Eager(4), Captured(4))
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(4):
            x = inputs()
            found = []
            for layer in (captured, eager):
                value = layer(x)
                found.append((value, *torch.autograd.grad(value.sin().sum(), list(cell.parameters()))))
            for one, other in zip(*found, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    (only,) = told
    assert "Outer, forward cannot be captured: it contains a solve" in str(only.message)
    assert len(captured.cell.inner._captures) >= 1, "the one within is recorded all the same"


def test_after_a_solve_of_one_stretch_the_evaluation_of_all_rows_is_recorded_too():
    """Rows that stop at different steps are evaluated together once more; this must not cost what the solve saved."""
    eager, captured = layers(Cell(), Picard(), Picard(), every=100)
    for _ in range(4):
        same(eager, captured, inputs())
    used = [tape for tape in tapes(captured) if not tape._recordings]
    assert used
    assert any(tape._evaluation is not None for tape in used)


def test_a_looped_cell_within_is_recorded_with_the_steps_around_it(monkeypatch):
    """A recording within a recording would fail on a card, or wait for itself."""
    made, inside = [], []
    record_it = Tape._record

    def noted(self, function):
        inside.append(self)
        made.append(len(inside))
        try:
            return record_it(self, function)
        finally:
            inside.pop()

    monkeypatch.setattr(Tape, "_record", noted)

    class Outer(nn.Module):
        def __init__(self, loop):
            super().__init__()
            self.inner = Looped(Cell(), steps=30, tracked=1, loop=loop)

        def forward(self, z, x):
            return 0.3 * self.inner(0.5 * z + x)

    torch.manual_seed(0)
    outer = Outer(Captured(4))
    eager, captured = layers(outer, Picard(), Picard())
    for _ in range(4):
        x, gradients = inputs(), []
        for layer in (eager, captured):
            value = layer(x)
            gradients.append((value, *torch.autograd.grad(value.sin().sum(), list(layer.parameters()))))
        torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)
    assert set(made) == {1}


def test_the_recorded_evaluation_outlives_changed_weights():
    """A recording reads the weights where they lie: later products with the first evaluation are not refused."""
    cell = Cell()
    problem = Problem(cell, (inputs(),), Layout(inputs()))
    explicit, known = PureProblem.of(problem)
    explicit.note()
    point = inputs()
    source = backward_source(explicit, known, point, torch.zeros_like(point))
    adjoint = source.build()(*source.tensors)
    before = adjoint(torch.ones_like(point))
    with torch.no_grad():
        cell.inner.weight.mul_(2)
        cell.inject.weight.mul_(2)
    torch.testing.assert_close(adjoint(torch.ones_like(point)), 2 * before)


class Waiting(Cell):
    def forward(self, z, x):
        return super().forward(z, x) * (0.5 if x.sum().item() > 1e9 else 1)


def test_a_cell_that_waits_for_the_host_is_run_with_one_warning(default_device):
    eager, captured = layers(Waiting())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(4):
            x = inputs()
            found = []
            for layer in (eager, captured):
                value = layer(x)
                found.append((value, *torch.autograd.grad(value.sin().sum(), list(layer.parameters()))))
            for one, other in zip(*found, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    reasons = [str(each.message) for each in told if "Captured" in str(each.message)]
    if default_device == "cuda":
        assert len(reasons) == 1, reasons
        assert "Waiting, forward cannot be captured" in reasons[0]
        assert "capturing" in reasons[0]
    else:
        assert not reasons, "on a processor nothing waits"
    torch.nn.functional.dropout(torch.randn(3))  # a refused capture leaves neither random numbers nor memory disturbed
    torch.cuda.empty_cache()
    _, other = layers(Cell())
    for _ in range(3):
        other.solve(inputs())
    assert [tape._beginning for tape in tapes(other)] != [None]


def test_copies_pickles_and_states_leave_recordings_behind():
    _, captured = layers(Cell())
    x = inputs()
    for _ in range(3):
        captured(x).sum().backward()
    assert len(captured._captures) == 2
    assert set(captured.state_dict()) == {"cell." + name for name in captured.cell.state_dict()}
    twin = copy.deepcopy(captured)
    file = io.BytesIO()
    torch.save(captured, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    for other in (twin, again):
        assert len(other._captures) == 0
        for _ in range(3):
            torch.testing.assert_close(other(x), captured(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("parametrized", [False, True])
def test_recordings_keep_neither_inputs_nor_their_graphs(parametrized):
    _, captured = layers(Cell(parametrized))
    kept = []
    for _ in range(4):
        leaf = inputs().requires_grad_()
        x = leaf * 1
        kept += [weakref.ref(leaf), weakref.ref(x)]
        captured(x).sum().backward()
    assert len(captured._captures) == 2
    del leaf, x
    gc.collect()
    assert [each() for each in kept] == [None] * len(kept)


@pytest.mark.parametrize("solver", [Picard(), Anderson(memory=2)], ids=["picard", "anderson"])
def test_a_dropped_layer_frees_its_recordings_at_once(solver):
    """A graph keeps memory on a GPU, which must not wait for the collector of cycles."""
    _, captured = layers(Cell(), solver)
    for _ in range(5):
        captured(inputs()).sum().backward()
    kept = [weakref.ref(tape) for tape in tapes(captured)]
    made = [
        recording
        for tape in tapes(captured)
        for recording in (tape._beginning, tape._evaluation, *tape._recordings.values())
        if recording is not None
    ]
    kept += map(weakref.ref, made)
    assert len(kept) >= 6
    for recording in made:
        vars(recording).pop("_function", None)  # of which a graph keeps nothing
    gc.collect()
    gc.disable()
    try:
        del captured, recording, made
        assert [each() for each in kept] == [None] * len(kept)
    finally:
        gc.enable()


@pytest.mark.parametrize("solver", [Anderson(7), Broyden(7), GMRES(7)])
def test_the_recorded_beginning_copies_no_history(monkeypatch, solver):
    copied: list[int] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.copy_.default:
                copied.append(args[0].numel())
            return function(*args, **(kwargs or {}))

    made = Called.__init__

    def counted(recording, function):
        with Copies():
            made(recording, function)
        monkeypatch.undo()  # the beginning is recorded first

    monkeypatch.setattr(Called, "__init__", counted)
    _, captured = layers(Cell(), solver)
    for _ in range(2):
        captured.solve(inputs())
    assert copied
    assert max(copied) <= 2 * ROWS * DIM  # GMRES keeps two vectors as one


def test_few_are_kept():
    _, captured = layers(Cell())

    def solve_all():
        for rows in range(1, 4 * LIMIT):  # each is recorded when the layer meets it again, and never replayed
            for _ in range(2):
                captured.solve(torch.randn(rows, DIM, dtype=torch.float64))

    with pytest.warns(RuntimeWarning, match="none of the last 24 solves of Cell, forward replayed") as told:
        solve_all()
    assert len(told) == 1
    assert len(captured._captures) <= LIMIT
    assert not any(tape.lent for tape in tapes(captured))


def test_solves_on_other_streams_wait_for_the_last_one():
    layer = Equilibrium(Slow().double(), solver=Picard(), compact=False, loop=Captured(3), **TIGHT)
    given = [inputs() for _ in range(4)]
    expected = [layer.solve(x).value for x in given]
    if given[0].is_cuda:
        torch.cuda.synchronize()
    streams = [torch.cuda.Stream() if given[0].is_cuda else None for _ in given]
    for _ in range(10):
        found = []
        for x, stream in zip(given, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(layer.solve(x).value)
        if given[0].is_cuda:
            torch.cuda.synchronize()
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_threads_do_not_share_buffers():
    eager, captured = layers(Cell())
    x = [inputs() for _ in range(4)]
    expected = [eager(each).detach() for each in x]
    for each in x:
        captured(each)
    wrong = []

    def work(number):
        for _ in range(10):
            if not torch.allclose(captured(x[number]).detach(), expected[number], rtol=1e-8, atol=1e-8):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_buffers_of_an_interrupted_solve_are_used_again(monkeypatch):
    eager, captured = layers(Cell())
    for _ in range(3):
        captured(inputs())
    with monkeypatch.context() as patch:
        patch.setattr(type(captured._captures), "give_back", lambda *_: None)  # as if interrupted before it
        captured(inputs())
    gc.collect()
    assert not any(tape.lent for tape in tapes(captured))
    same(eager, captured, inputs())


def test_an_error_in_the_cell_gives_the_buffers_back():
    class Failing(Cell):
        fail = False

        def forward(self, z, x):
            if self.fail:
                raise ArithmeticError("no")
            return super().forward(z, x)

    cell = Failing()
    eager, captured = layers(cell)
    for _ in range(3):
        captured(inputs())
    cell.fail = True
    with pytest.raises(ArithmeticError):
        captured(inputs())
    cell.fail = False
    assert not any(tape.lent for tape in tapes(captured))
    for _ in range(3):
        same(eager, captured, inputs())


@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_cannot_be_recorded_is_run_with_one_warning(monkeypatch, at):
    made = []
    record_it = Tape._record

    def failing(self, function):
        made.append(function)
        if len(made) >= at:
            raise RecordingError from RuntimeError("operation not permitted when stream is capturing")
        return record_it(self, function)

    monkeypatch.setattr(Tape, "_record", failing)
    eager, captured = layers(Cell())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(9):
            x = inputs()
            with torch.no_grad():
                torch.testing.assert_close(captured(x), eager(x), rtol=1e-9, atol=1e-9)
    (only,) = told
    assert "Cell, forward cannot be captured (RuntimeError: operation not permitted" in str(only.message)
    assert len(captured._captures) == 0, "nothing uses its buffers again"


class Rotation(nn.Module):
    """Converges at a rate that can be set in place, in any direction alike."""

    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.linalg.qr(torch.randn(DIM, DIM, dtype=torch.float64))[0])
        self.register_buffer("rate", torch.tensor(0.1, dtype=torch.float64))

    def forward(self, z, x):
        return self.rate * (z @ self.turn) + x


@pytest.mark.parametrize(("solver", "span"), [(Picard(), 16), (Anderson(3), 8), (Broyden(4), 8)], ids=repr)
def test_a_refusal_within_a_solve_does_not_return_to_an_earlier_step(monkeypatch, solver, span):
    """Memory may run out in a stretch longer than those recorded before, some of which follow others."""
    run, made, spans = Tape.run, Called.__init__, []

    def noted(tape, hold, count):
        spans.append(count)
        return run(tape, hold, count)

    def failing(recording, function):
        if refusing and spans and spans[-1] == span:
            raise RuntimeError("out of memory")
        made(recording, function)

    monkeypatch.setattr(Tape, "run", noted)
    monkeypatch.setattr(Called, "__init__", failing)
    options = {"solver": solver, "compact": False, "rtol": 1e-8, "atol": 1e-12, "max_steps": 400}
    cell, refusing = Rotation(), False
    eager, captured = (Equilibrium(cell, loop=loop, **options) for loop in (Eager(4), Captured(4)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number, rate in enumerate([0.05] * 6 + [0.1] * 6 + [0.2, 0.2, 0.3, 0.35, 0.35, 0.35]):
            refusing, x = number >= 12, inputs()
            cell.rate.fill_(rate)
            one, other = captured.solve(x), eager.solve(x)
            assert one.steps.tolist() == other.steps.tolist(), (number, spans)
            torch.testing.assert_close(one.value, other.value, rtol=1e-9, atol=1e-11)
            spans.clear()
    assert len(told) == 1, "a recording was refused"


@pytest.mark.filterwarnings("error")
def test_an_error_after_an_interrupted_recording_is_no_refusal(monkeypatch):
    class Interrupted(Cell):
        error = None

        def forward(self, z, x):
            if interrupting and loops.recorded():
                raise KeyboardInterrupt
            if self.error is not None:
                raise self.error
            return super().forward(z, x)

    interrupting = False
    _, captured = layers(Interrupted())
    captured.solve(inputs())
    interrupting = True
    with pytest.raises(KeyboardInterrupt):
        captured.solve(inputs())
    interrupting, captured.cell.error = False, ValueError("of the cell")
    with pytest.raises(ValueError, match="of the cell"):
        captured.solve(inputs())
    captured.cell.error = None
    for _ in range(3):
        captured.solve(inputs())
    assert [tape for tape in tapes(captured) if tape._beginning is not None]


class Creeping(Cell):
    """500 plain steps to nine digits."""

    def forward(self, z, x):
        return 0.95 * z + 0.05 * super().forward(z, x)


@pytest.fixture
def recordings(monkeypatch):
    """All that are made."""
    made, record_it = [], Tape._record

    def noted(self, function):
        made.append(record_it(self, function))
        return made[-1]

    monkeypatch.setattr(Tape, "_record", noted)
    return made


@pytest.mark.parametrize("solver", [Picard(), Picard(damping=0.8), Anderson(3), Broyden(4)], ids=repr)
def test_a_function_is_recorded_within_a_long_solve(recordings, solver):
    cell, x = Creeping(), inputs()
    options = {**TIGHT, "max_steps": 1000, "solver": solver}

    def f(z):
        return cell(z, x)

    def F(z):
        return z - f(z)

    for _ in range(3):
        x += 0.1  # a closure's tensors may change between solves
        z0 = torch.zeros_like(x)
        for entry, function in ((solve, f), (root, F)):
            expected = entry(function, z0, loop=Eager(3), **options)
            found = entry(function, z0, loop=Captured(3), **options)
            assert found.status.tolist() == expected.status.tolist() == [0] * ROWS
            assert found.steps.tolist() == expected.steps.tolist()
            torch.testing.assert_close(found.value, expected.value, rtol=1e-8, atol=1e-9)
            torch.testing.assert_close(found.trace, expected.trace, rtol=1e-5, atol=1e-12, equal_nan=True)
            assert not z0.any()
        assert solver != Picard() or len(recordings) >= 2
        recordings.clear()


@pytest.mark.parametrize("entry", [fixed_point, implicit.root], ids=["fixed_point", "root"])
def test_a_function_has_the_eager_gradient(recordings, entry):
    cell = Creeping()
    options = {**TIGHT, "max_steps": 1000, "solver": Picard(), "gradient": ImplicitGradient(rtol=1e-10, max_steps=400)}
    gradients = []
    for loop in (Eager(3), Captured(3)):
        x = inputs().requires_grad_()
        x.data.copy_(torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x))

        def f(z, x=x):
            return z - cell(z, x) if entry is implicit.root else cell(z, x)

        cell.zero_grad()
        entry(f, torch.zeros_like(x), loop=loop, **options).square().sum().backward()
        gradients.append([x.grad, cell.inner.weight.grad, cell.inject.bias.grad])
    assert recordings
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_short_solve_of_a_function_has_no_buffers(recordings, monkeypatch):
    monkeypatch.setattr(Tape, "__init__", None)
    cell, x = Cell(), inputs()
    assert solve(lambda z: cell(z, x), torch.zeros_like(x), loop=Captured(), **TIGHT).converged.all()
    assert recordings == []


def test_a_function_that_cannot_be_recorded_is_run_with_one_warning(monkeypatch):
    def failing(self, function):
        raise RecordingError from RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Tape, "_record", failing)
    cell, x, options = Creeping(), inputs(), {**TIGHT, "max_steps": 1000}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = solve(lambda z: cell(z, x), torch.zeros_like(x), solver=Picard(), loop=Captured(3), **options)
    (only,) = told
    assert "<lambda> cannot be captured (RuntimeError: operation not permitted" in str(only.message)
    assert only.filename == __file__
    assert found.converged.all()


def test_what_it_refuses():
    for solver in (NewtonKrylov(), Monotone()):
        if not solver.fixed_cost:
            with pytest.raises(ValueError, match="fixed cost"):
                Equilibrium(Cell(), solver=solver, loop=Captured())
    with pytest.raises(ValueError, match="fixed shapes"):
        Equilibrium(Cell(), compact=True, loop=Captured())
    with pytest.raises(ValueError, match="check_every=0"):
        Captured(0)
    assert Reversible().fixed_cost


class Casts(TorchDispatchMode):
    """Counts casts of a matrix."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default and args[0].shape == (DIM, DIM)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [False, True])
def test_weights_are_cast_no_more_often_than_in_eager_steps(grad):
    found, (x, kind) = [], (torch.randn(ROWS, DIM), torch.get_default_device().type)
    for loop in (Eager(8), Captured(8)):
        layer = Equilibrium(Cell().float(), solver=Picard(), rtol=1e-2, max_steps=25, loop=loop, compact=False)
        for _ in range(5):
            with torch.autocast(kind, torch.bfloat16), torch.set_grad_enabled(grad), Casts() as casts:
                layer(x)
        found.append(casts.count)
    assert found[1] <= found[0]


class Flipping(nn.Module):
    """Goes to and fro: all residuals of a row are equal, up to rounding."""

    def forward(self, z, x):
        return x - z


class Drifting(nn.Module):
    """Takes equal steps for ever."""

    def forward(self, z, x):
        return z + 0.1 * x


@pytest.mark.parametrize("cell", [Flipping(), Drifting()], ids=["to and fro", "for ever"])
@pytest.mark.parametrize("every", [3, 4])
@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")
def test_equal_residuals_are_told_apart_by_no_rounding(cell, every, device):
    torch.manual_seed(1)
    x = torch.randn(6, DIM, dtype=torch.float32, device=device)
    options = {"solver": Picard(), "compact": False, "rtol": 1e-5, "max_steps": 4}
    expected = Equilibrium(cell, loop=Eager(every), **options).solve(x)
    layer = Equilibrium(cell, loop=Captured(every), **options)
    for _ in range(4):
        found = layer.solve(x)
        assert torch.equal(found.value, expected.value)
        assert torch.equal(found.residual, expected.residual)
    if isinstance(cell, Flipping):  # the first of equal ones, in each row
        assert not expected.value.any()
