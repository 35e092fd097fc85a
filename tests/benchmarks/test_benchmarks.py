"""The benchmarks run, their problems are what they say, and the counts they print are true."""

import importlib.util
import json
import math
import subprocess
import sys

import pytest
import torch

from benchmarks.backward import QUICK
from benchmarks.counting import Counted, Watch
from benchmarks.differentiation import measured, ours
from benchmarks.evaluations import SOLVERS
from benchmarks.exact import exact
from benchmarks.jax_peers import with_optimistix
from benchmarks.problems import PROBLEMS, build
from benchmarks.solver_memory import in_process_of_its_own, peak
from implicit import ImplicitGradient, NeumannGradient
from solvers import Anderson, Broyden, NewtonKrylov, solve


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], capture_output=True, text=True, check=False, **options
    )


def pictured(path, result):
    """Whether the figure is there, or said to be left out for want of matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return not path.exists() and "the figure is skipped: matplotlib" in result.stdout
    return path.stat().st_size > 10_000 and f"figure: {path}" in result.stdout


def test_a_quick_run_prints_and_writes_every_table(tmp_path):
    result = run("solvers", "--quick", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "solvers.json").read_text(encoding="utf-8"))
    evaluations = {f"evaluations_1e-{digits}_{part}" for digits in (4, 8) for part in ("ours", "peers", "summary")}
    others = {"overhead", "compiled", "frugality", "scaling", "monotone", "failed_safely", "solvable", "proximal"}
    assert set(written["tables"]) == evaluations | others | {"growth_state", "growth_batch"}
    for table in written["tables"].values():
        assert table["title"] in result.stdout
        # an empty table says why
        assert table["rows"] or any(note.startswith("skipped: ") for note in table["notes"])
    for line in written["skipped"]:
        assert line in result.stdout
    for row in written["tables"]["failed_safely"]["rows"]:
        assert row["reported"] == row["as expected"] == row["of"]
    assert all(row["reported failed"] == 0 for row in written["tables"]["solvable"]["rows"])
    ours, peers = (written["tables"][f"evaluations_1e-8_{part}"]["rows"] for part in ("ours", "peers"))
    for row, beside in zip(ours, peers):
        # plain iteration is the same in every framework
        for name in ("torchdeq plain", "jaxopt plain", "optimistix plain"):
            assert beside.get(name, "–") in ("–", row["Picard"])
    for row in written["tables"]["proximal"]["rows"]:
        if row["algorithm"] in ("PGD", "FISTA"):  # the same algorithms, step for step
            assert row.get("1e-8 deepinv", row["1e-8 ours"]) == row["1e-8 ours"]
    for row in written["tables"]["growth_batch"]["rows"]:
        assert row["ours unsolved"] == 0
    assert "s] failed safely: Picard" in result.stderr
    assert pictured(tmp_path / "solvers.png", result)


def test_a_quick_run_of_parallel_prints_and_writes_every_table(tmp_path):
    result = run("parallel", "--quick", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    tables = json.loads((tmp_path / "parallel.json").read_text(encoding="utf-8"))["tables"]
    assert set(tables) == {"branches", "depth", "sequences"}
    for table in tables.values():
        assert table["title"] in result.stdout
        assert table["rows"]
    assert all(row["batched ÷ loop"] > 0 for row in tables["branches"]["rows"])
    by_network = {row["network"]: row for row in tables["depth"]["rows"]}
    assert by_network["serial"]["inference ÷ serial"] == 1
    assert pictured(tmp_path / "parallel.png", result)
    assert by_network["4 sweeps"]["relative error"] < 1e-5 < by_network["1 sweep"]["relative error"]


def test_a_quick_run_of_gradients_prints_and_writes_every_table(tmp_path):
    result = run("gradients", "--quick", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    tables = json.loads((tmp_path / "gradients.json").read_text(encoding="utf-8"))["tables"]
    cases = {f"backward {name}" for name in QUICK}
    others = {
        "training_step",
        "splitting",
        "proximal_seconds",
        "proximal_gradients",
        "products",
        "second_derivatives",
        "loss_scale",
    }
    assert set(tables) == others | cases
    for table in tables.values():
        assert table["title"] in result.stdout
        assert table["rows"] or any(note.startswith("skipped: ") for note in table["notes"])
    second = {row["gradient"]: row["relative error"] for row in tables["second_derivatives"]["rows"]}
    assert second["ImplicitGradient(rtol=1e-8)"] < 1e-5
    assert second["PhantomGradient(5)"] == "refused"
    ours = tables["loss_scale"]["rows"][0]
    errors = [value for column, value in ours.items() if column != "gradient"]
    assert max(errors) < 1e-3
    assert max(errors) - min(errors) < 1e-6
    for name in cases:
        exact = [row for row in tables[name]["rows"] if row["gradient"].startswith("ImplicitGradient(GMRES")]
        assert all(row["error"] < 1e-3 and row["cosine"] > 0.999 for row in exact)

    plain = [row for row in tables["proximal_gradients"]["rows"] if row["network"] == "PGD, DEQ, plain"]
    assert all(row["error"] < 1e-2 for row in plain)
    assert pictured(tmp_path / "gradients.png", result)


def test_a_quick_run_of_memory_says_what_it_leaves_out(tmp_path):
    result = run("memory", "--quick", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    tables = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))["tables"]
    assert set(tables) == {"solvers", "gradients"}
    assert all("skipped: --quick leaves out" in table["notes"][0] for table in tables.values())
    assert pictured(tmp_path / "memory.png", result)


def test_a_quick_run_of_training_learns_from_the_same_weights(tmp_path):
    result = run("training", "--quick", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    tables = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))["tables"]
    assert set(tables) == {"training", "accuracy", "seconds"}
    rows = tables["training"]["rows"]
    exact = [row["accuracy, %"] for row in rows if "Phantom" not in row["trained with"]]
    assert max(exact) - min(exact) < 2  # solved to the same tolerance, they all but share their path
    assert min(exact) > 30  # of ten classes, after ten steps
    assert all(row["rows a row"] <= row["evaluations a step"] * 1.2 for row in rows)
    assert pictured(tmp_path / "training.png", result)


def test_memory_is_measured_in_a_process_of_its_own():
    few, many = (in_process_of_its_own(peak, "Broyden", "ours", steps) / 2**20 for steps in (2, 6))
    assert 0 < few < many < 200


@pytest.mark.parametrize(("solver", "least", "most"), [("Newton", 66, 66), ("Chord", 66, 67)])
def test_an_affine_problem_takes_newton_one_jacobian(solver, least, most):
    pytest.importorskip("optimistix", reason="needs optimistix, which the extra bench has")
    # one evaluation and 64 products, then the evaluation that meets the test
    assert least <= with_optimistix(solver, PROBLEMS["Gaussian 0.95"], 1e-8) <= most


def test_products_are_counted_inside_the_cell():
    for steps in (1, 4):
        found = measured(exact("Gaussian 0.9"), ours(NeumannGradient(steps)))
        assert found.products == steps
    found = measured(exact("Gaussian 0.9"), ours(ImplicitGradient(rtol=1e-9)))
    assert found.products_a_row <= found.products <= found.products_a_row + 6
    assert found.error < 1e-7


def test_the_name_is_asked_for():
    result = run()
    assert result.returncode == 2
    assert "solvers: overhead" in result.stderr


def test_an_unknown_name_is_one_line():
    result = run("gradient")
    assert result.returncode == 2
    assert result.stderr == "no benchmark 'gradient': name one of solvers, gradients, parallel, memory, training, gpu\n"


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    result = run("solvers", "--quick", "--out", str(tmp_path / "file"))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("title", PROBLEMS)
def test_problems_are_the_same_whenever_built(title):
    first, second = PROBLEMS[title], build()[title]
    assert first.z0.dtype == torch.float64
    assert torch.equal(first.z0, second.z0)
    assert torch.equal(first.f(first.z0), second.f(second.z0))
    assert first.reference


@pytest.mark.parametrize("title", PROBLEMS)
def test_problems_have_a_fixed_point(title):
    problem = PROBLEMS[title]
    assert any(
        solve(problem.f, problem.z0, solver=solver, rtol=1e-10, atol=0.0, max_steps=2000).converged.all()
        for solver in (Anderson(), Broyden(), NewtonKrylov())
    )


@pytest.mark.parametrize("title", PROBLEMS)
def test_a_row_is_the_problem_of_its_own(title):
    problem = PROBLEMS[title]
    z = problem.z0 + 0.01 * torch.rand_like(problem.z0)
    last = len(z) - 1
    torch.testing.assert_close(problem.row(last).f(z[last:]), problem.f(z)[last:])


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("title", ["Bratu", "tanh 0.9", "Gaussian mixture", "convolutional"])
def test_reported_evaluations_are_those_inside_f(title, solver):
    problem = PROBLEMS[title]
    batch = solve(problem.f, problem.z0, solver=solver, rtol=1e-8, atol=0.0, max_steps=2000)
    for row in range(len(problem.z0)):
        alone = problem.row(row)
        counted = Counted(alone.f)
        solution = solve(counted, alone.z0, solver=solver, rtol=1e-8, atol=0.0, max_steps=2000)
        if isinstance(solver, NewtonKrylov):  # whose products by reverse mode count, and do not call f again
            assert counted.calls <= solution.evaluations.item()
        else:
            assert solution.evaluations.tolist() == [counted.calls]
        # batch-mates change the rounding of f, not the work
        assert int(batch.evaluations[row]) == pytest.approx(solution.evaluations.item(), abs=1)


def test_a_watch_books_the_first_evaluation_that_meets_the_test():
    watch = Watch(2, rtol=0.1, limit=4)
    for residual in ([1.0, 0.05], [0.2, 1.0], [0.1, math.nan]):
        assert not watch.done
        watch.note(residual, [1.0, 1.0])
    assert watch.done
    assert watch.evaluations == 2.0  # the third and the first
    limited = Watch(1, rtol=0.1, limit=1)
    limited.note([1.0], [1.0])
    assert limited.done
    assert limited.evaluations == math.inf
