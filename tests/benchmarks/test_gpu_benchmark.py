"""The benchmark of a GPU: its measurements run on any device, and without a GPU it says what it needs."""

import json
import math
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import device_steps, device_training, gpu
from benchmarks.device_clock import described
from benchmarks.device_steps import COUNTED, LOOPS, PASSES, SOLVERS, Run, step_times
from benchmarks.device_training import tight_gradient, training_times
from benchmarks.jax_steps import jax_device, jitted_solves
from benchmarks.peers import installed
from benchmarks.report import Progress, Table
from benchmarks.training_step import RTOL, convolutional, dense

SHAPES = ((1, 64), (4, 16))
FEW = {"dense": partial(dense, 4, 12)}


def sides(solver, device):
    """Whoever takes part, with what is installed here."""
    found = [*LOOPS, *(["torchdeq"] if installed("torchdeq") else [])]
    seen = jax_device(torch.device(device)) is not None
    if seen and installed("jaxopt") and solver in ("Picard", "Anderson"):
        found.append("jaxopt, jit")
    if seen and installed("optimistix") and solver == "Picard":
        found.append("optimistix, jit")
    return found


def steps_of(device, shapes=SHAPES):
    where = described(torch.device(device), gpu.PEERS)
    return step_times(torch.device(device), Progress(), where=where, shapes=shapes, steps=24, repeats=3, copied=2**12)


def test_each_state_and_solver_has_a_row_a_side(device):
    table = steps_of(device)
    found = [(row["state"], row["solver"], row["by"]) for row in table.rows]
    assert found == [
        (str(shape), solver, side) for shape in SHAPES for solver in SOLVERS for side in sides(solver, device)
    ]
    for row in table.rows:
        assert 0 < row["least"] <= row["median"] <= row["largest"]
        assert row["f in a graph"] > 0
    first = {row["solver"]: row["bytes"] for row in table.rows if row["state"] == str(SHAPES[0])}
    assert first["Anderson"] / first["Picard"] == pytest.approx(PASSES["Anderson"] / PASSES["Picard"])
    assert COUNTED in table.notes
    assert f"torch {torch.__version__.split('+')[0]}" in table.notes[0]
    assert not any(note.startswith("left out") for note in table.notes)
    assert json.loads(json.dumps(table.rows, allow_nan=False)) == table.rows


def test_a_solve_of_other_steps_is_left_out_aloud(monkeypatch):
    honest = device_steps._runs

    def runs(*arguments):
        return honest(*arguments) | {"early": Run(lambda: None, lambda: 3)}

    monkeypatch.setattr(device_steps, "_runs", runs)
    table = steps_of("cpu", SHAPES[:1])
    assert "early" not in [row["by"] for row in table.rows]
    assert "early, Picard at (1, 64): 3 steps" in table.notes[-1]


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried to allocate", "RESOURCE_EXHAUSTED: Out of memory"])
def test_what_does_not_fit_is_left_out_aloud(monkeypatch, words):
    def full(*arguments):
        raise RuntimeError(words)

    honest = device_steps._runs
    monkeypatch.setattr(device_steps, "_runs", lambda *arguments: honest(*arguments) | {"large": Run(full, lambda: 24)})
    table = steps_of("cpu", SHAPES[:1])
    assert "large" not in [row["by"] for row in table.rows]
    assert "large, Picard at (1, 64): out of memory" in table.notes[-1]

    monkeypatch.setattr(device_training, "one_step", full)
    table = training_times(torch.device("cpu"), Progress(), where="here", cells=FEW, repeats=1)
    assert table.rows == []
    assert "captured, Anderson on dense: out of memory" in table.notes[-1]


def test_a_gradient_that_is_not_finite_is_left_out_aloud(monkeypatch):
    monkeypatch.setattr(device_training, "one_step", lambda forward, cell, x: (torch.tensor([1.0, torch.nan]),))
    table = training_times(torch.device("cpu"), Progress(), where="here", cells=FEW, repeats=1)
    assert table.rows == []
    assert "captured, Anderson on dense: the gradient is not finite" in table.notes[-1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_jax_solves_the_same_problem(solver):
    pytest.importorskip("jaxopt", reason="needs jaxopt, which the extra bench has")
    x, scale = torch.randn(2, 8), torch.linspace(0.1, 0.2, 8)
    for solve in jitted_solves(solver, scale, x, 60).values():
        torch.testing.assert_close(torch.tensor(solve()[0].tolist()), x / (1 - scale), rtol=1e-3, atol=1e-4)


def test_a_training_step_of_each_solver_beside_torchdeqs(device):
    cells = {"dense": partial(dense, 4, 12), "convolutional": partial(convolutional, 2, 12, 4)}
    table = training_times(torch.device(device), Progress(), where="here", cells=cells, repeats=2)
    assert [note for note in table.notes if note.startswith(("left out", "no gradient"))] == []
    for cell in cells:
        rows = {(row["solver"], row["by"]): row for row in table.rows if row["cell"] == cell}
        peers = ["torchdeq"] if installed("torchdeq") else []
        wanted = {(solver, side) for solver in SOLVERS for side in (*LOOPS, *peers)} | {
            ("default", side) for side in LOOPS
        }
        assert set(rows) == wanted
        for row in rows.values():
            assert 0 < row["least"] <= row["median"] <= row["largest"]
            assert row["gradient error"] < 100 * RTOL
        for solver in SOLVERS if peers else ():
            assert rows[solver, "torchdeq"]["÷ same"] == 1
        if peers:
            assert 1 in [rows[solver, "torchdeq"]["÷ fastest"] for solver in SOLVERS]


def test_what_misses_the_tolerance_has_no_row_and_is_named(monkeypatch):
    monkeypatch.setattr(device_training, "reaches", lambda forward, cell, x: False)
    table = training_times(torch.device("cpu"), Progress(), where="here", cells=FEW, repeats=1)
    assert table.rows == []
    assert "captured, Anderson on dense: not every row meets the tolerance" in table.notes[-1]


def test_a_gradient_that_no_tight_solve_finds_is_none():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(3))

        def forward(self, z, x):
            return z + self.by.abs() + x.abs()

    assert tight_gradient(Shift(), torch.ones(2, 3)) is None


def test_the_gradient_compared_with_is_that_of_the_equation():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.5))

        def forward(self, z, x):
            return self.slope * z + x

    (found,) = tight_gradient(Line(), torch.ones(2, 3))
    assert math.isclose(found.item(), 2 * 2 * 4, rel_tol=1e-8)  # of (1 / (1 − s))², 2 / (1 − s)³


def test_without_a_gpu_one_line_says_what_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.compare(False, tmp_path)
    said = capsys.readouterr().out
    assert said.count("skipped: needs a CUDA device") == 1
    (table,) = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["tables"].values()
    assert (table["rows"], table["notes"]) == ([], [gpu.SKIPPED])
    if installed("matplotlib"):
        assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_its_figure_has_a_curve_a_side():
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    from benchmarks.gpu_figure import gpu as drawn

    def row(entries, solver, side):
        return {"entries": entries, "solver": solver, "by": side, "median": 9.0, "f in a graph": 2.0, "bytes": 0.1}

    step = {"cell": "dense", "solver": "Picard", "by": "eager", "median": 2.0, "least": 1.0, "largest": 3.0}
    rows = [row(entries, solver, side) for solver in SOLVERS for entries in (64, 8192) for side in LOOPS]
    tables = {"steps": Table("steps", rows), "training": Table("training", [step])}
    figure = drawn(tables)
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["eager", "f in a graph", "bytes", "captured"]
    assert [text.get_text() for text in figure.axes[3].get_yticklabels()] == ["Picard, eager"]
