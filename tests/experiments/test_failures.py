"""Whatever fails, a run goes on and ends with a report; resumed, it does what is missing, and no more."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import lightning
import matplotlib.pyplot as plt
import pytest
from torch import nn
from torch.utils.data import TensorDataset

from experiments.cli import main
from experiments.commands import sweeps
from experiments.errors import InputError, TrainingError
from experiments.failures import Failures, alike
from experiments.measuring import diagnosis, measure
from experiments.reporting import figures, report
from experiments.running import folder as folders
from experiments.running import trials
from experiments.running.pieces import Pieces
from experiments.tasks.small import rings

MODELS = ["gd", "pgd-deq", "heavy_ball"]
SETTINGS = ["compare", "rings", "--no-search", "--epochs", "1", "--seeds", "1", "--models", ",".join(MODELS)]


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """On few of the points, few of which are measured."""

    def few():
        whole = rings()
        train, test = (TensorDataset(*(part[:300] for part in data.tensors)) for data in (whole.train, whole.test))
        return replace(whole, train=train, test=test, measured=64)

    monkeypatch.setattr("experiments.tasks.small.rings", few)
    few_figures = {name: figures.FIGURES[name] for name in ("training", "residuals", "cost")}
    monkeypatch.setattr(report, "FIGURES", few_figures)  # drawing takes seconds


class Planted(Exception):
    """On purpose."""


def failing_for(original, name):
    """The function, which fails where it is called for this network."""

    def planted(*args, **options):
        if options.get("name") == name:
            raise Planted(f"planted in {name}\nin more than one line")
        return original(*args, **options)

    return planted


def fails(*args, **options):
    raise Planted("planted\nin more than one line")


def in_training(patch):
    patch.setattr(trials, "train", failing_for(trials.train, "heavy_ball"))


def in_the_making(patch):
    build = trials.Trials.run

    def planted(self, name, contestant, size, seed, rate):
        class Broken:
            description, learning_rate = contestant.description, None

            @staticmethod
            def build(size):
                raise Planted("planted")

        return build(self, name, Broken if name == "heavy_ball" else contestant, size, seed, rate)

    patch.setattr(trials.Trials, "run", planted)


def in_the_whole_measurement(patch):
    measure, count = trials.measure, [0]

    def planted(*args):
        count[0] += 1
        return fails() if count[0] == 2 else measure(*args)

    patch.setattr(trials, "measure", planted)


def in_the_latency_of_one_row(patch):
    latency = measure.latency
    patch.setattr(measure, "latency", lambda net, x: fails() if len(x) == 1 else latency(net, x))


def in_the_score(patch):
    patch.setattr(measure, "score", fails)


def in_the_forward_pass(patch):
    patch.setattr(measure, "executed_flops", fails)


def in_the_diagnosis(patch):
    patch.setattr(diagnosis, "diagnose", fails)


def in_the_eigenvalues(patch):
    patch.setattr(diagnosis, "eigenvalues", fails)


def in_all_of_the_diagnosis(patch):
    patch.setattr(trials, "diagnosed", fails)


def in_a_figure(patch):
    caption, _ = report.FIGURES["training"]
    patch.setitem(report.FIGURES, "training", (caption, fails))


def in_the_report(patch):
    patch.setattr(report, "page", fails)


def in_the_table(patch):
    patch.setattr("experiments.running.compare.print_table", fails)


PLANTED = {  # where → the network that is missing, logs, words of the report, fits that are left
    in_training: ("heavy_ball", ["heavy_ball/seed-0/training.log"], "The training of heavy_ball, seed 0: Planted", 1),
    in_the_making: ("heavy_ball", ["heavy_ball/seed-0/making.log"], "The making of heavy_ball, seed 0: Planted", 1),
    in_the_whole_measurement: (
        "pgd-deq",
        ["pgd-deq/seed-0/measurement.log"],
        "The measurement of pgd-deq, seed 0: Planted: planted",
        0,
    ),
    in_the_latency_of_one_row: (
        None,
        [f"{name}/seed-0/latency-at-batch-1.log" for name in MODELS],
        "The latency at batch 1 of gd, seed 0; pgd-deq, seed 0; heavy_ball, seed 0: Planted: planted",
        0,
    ),
    in_the_score: (
        None,
        [f"{name}/seed-0/score.log" for name in MODELS],
        "The score of gd, seed 0; pgd-deq, seed 0; heavy_ball, seed 0: Planted",
        0,
    ),
    in_the_forward_pass: (
        None,
        [f"{name}/seed-0/forward-pass.log" for name in MODELS],
        "The forward pass of gd, seed 0; pgd-deq, seed 0; heavy_ball, seed 0: Planted",
        0,
    ),
    in_the_diagnosis: (
        None,
        ["pgd-deq/seed-0/diagnosis.log"],
        "Not known: the diagnosis ended with Planted: planted.",
        0,
    ),
    in_the_eigenvalues: (
        None,
        ["pgd-deq/seed-0/eigenvalues-of-1-equilibrium.log"],
        "Not known: the eigenvalues of 1.equilibrium ended with Planted: planted.",
        0,
    ),
    in_all_of_the_diagnosis: (
        None,
        ["pgd-deq/seed-0/whole-diagnosis.log"],
        "The whole diagnosis of pgd-deq, seed 0: Planted: planted",
        0,
    ),
    in_a_figure: (None, ["figure-training.log"], "This figure could not be drawn: Planted: planted.", 0),
    in_the_report: (None, ["report.log"], None, 0),
    in_the_table: (None, ["table.log"], None, 0),
}


def logs(folder):
    """The errors that were kept in full."""
    return sorted(str(path.relative_to(folder / "logs")) for path in (folder / "logs").rglob("*.log"))


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_run_goes_on_and_ends_with_a_report_and_resuming_it_does_what_is_missing(
    plant, tmp_path, monkeypatch, capsys
):
    missing, expected, words, left = PLANTED[plant]
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        plant(patch)
        assert main([*SETTINGS, "--out", str(folder)]) == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert f"resume with: implicit compare --resume {folder}" in printed.out.replace("\n", "")
    assert set(expected) <= set(logs(folder))
    for log in expected:
        text = (folder / "logs" / log).read_text()
        assert "Traceback" in text
        assert "Planted: planted" in text
        if plant is not in_the_making:
            assert "in more than one line" in text
    results = json.loads((folder / "results.json").read_text())
    assert list(results["models"]) == [name for name in MODELS if name != missing]
    assert results["missing"] == ([missing] if missing else [])
    assert [f"logs/{log}" for log in expected] == [
        failure["log"] for failure in results["failures"] if failure["log"].removeprefix("logs/") in expected
    ]
    if plant is in_the_report:
        assert not (folder / "report.html").exists()
        assert (folder / "residuals.png").exists()
    else:
        page = (folder / "report.html").read_text()
        assert 'id="failures"' in page
        assert words is None or words in re.sub(r"<[^>]*>", "", page)
        for name in MODELS:
            assert f'<th scope="row">{name}</th>' in page
        assert page.count("not measured") == (1 if missing else 0)
        assert page.count("<figure>") >= 1
        assert "report: " in printed.out

    fitted = []
    fit = lightning.Trainer.fit
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *args, **options: (fitted.append(1), fit(*args, **options)))
    assert main(["compare", "--resume", str(folder)]) == 0
    assert len(fitted) == left
    again = json.loads((folder / "results.json").read_text())
    assert list(again["models"]) == MODELS
    assert again["missing"] == again["failures"] == []
    for name, model in results["models"].items():
        assert model["runs"][0]["curves"] == again["models"][name]["runs"][0]["curves"]
        assert all(run[figure] is not None for run in again["models"][name]["runs"] for figure in ("score", "flops"))
        assert set(again["models"][name]["runs"][0]["latency"]) == {"1", "256"}
    assert not logs(folder)
    assert 'id="failures"' not in (folder / "report.html").read_text()
    assert not (folder / "unfinished").exists()
    assert main(["compare", "--resume", str(folder)]) == 2  # it is whole


def test_what_is_known_is_written_before_the_next_thing_starts(tmp_path, monkeypatch):
    folder, seen = tmp_path / "run.partial", {}
    train, measure, drawn = (
        trials.train,
        trials.measure,
        report.FIGURES["cost"],
    )

    def look(name):
        results = folder / "results.json"
        seen[name] = list(json.loads(results.read_text())["models"]) if results.exists() else None

    def trained(network, *args, name, **options):
        look(f"training {name}")
        return train(network, *args, name=name, **options)

    def measured(*args):
        look("measuring")
        assert list((folder / "checkpoints").iterdir())
        return measure(*args)

    def draw(comparison):
        look("drawing")
        return drawn[1](comparison)

    monkeypatch.setattr(trials, "train", trained)
    monkeypatch.setattr(trials, "measure", measured)
    monkeypatch.setitem(report.FIGURES, "cost", (drawn[0], draw))
    assert main([*SETTINGS[:-1], "gd,nesterov", "--out", str(tmp_path / "run")]) == 0
    assert seen == {
        "training gd": None,
        "training nesterov": ["gd"],
        "measuring": ["gd"],
        "drawing": ["gd", "nesterov"],
    }


def test_where_everything_fails_the_report_says_so(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trials, "train", fails)
        assert main([*SETTINGS, "--out", str(tmp_path / "run")]) == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("not measured") == len(MODELS)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["models"] == {}
    assert main(["compare", "--resume", str(tmp_path / "run")]) == 0


def test_a_seed_that_fails_costs_the_others_nothing(tmp_path, monkeypatch):
    def planted(*args, seed, name, **options):
        if seed == 0 and name == "pgd-deq":
            raise Planted("planted")
        return train(*args, seed=seed, name=name, **options)

    train = trials.train
    with monkeypatch.context() as patch:
        patch.setattr(trials, "train", planted)
        arguments = ["--epochs", "1", "--seeds", "3", "--models", "gd,pgd-deq", "--out", str(tmp_path / "run")]
        assert main(["compare", "rings", "--no-search", *arguments]) == 1
    models = json.loads((tmp_path / "run" / "results.json").read_text())["models"]
    assert [run["seed"] for run in models["pgd-deq"]["runs"]] == [1, 2]
    scores = [{run["seed"]: run["score"] for run in models[name]["runs"]} for name in ("pgd-deq", "gd")]
    differences = [scores[0][seed] - scores[1][seed] for seed in (1, 2)]
    assert models["pgd-deq"]["difference"]["mean"] == pytest.approx(sum(differences) / 2)


def test_an_ended_run_that_is_resumed_and_interrupted_keeps_its_name_and_its_report(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        in_training(patch)
        assert main([*SETTINGS, "--out", str(folder)]) == 1
    report = (folder / "report.html").read_text()

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trials, "train", interrupt)
        assert main(["compare", "--resume", str(folder)]) == 130
    assert f"{folder} is kept; resume with: implicit compare --resume {folder}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (folder / "report.html").read_text() == report
    assert main(["depth", "--resume", str(folder)]) == 2
    assert "this is a run of implicit compare, not of implicit depth" in capsys.readouterr().err
    assert main(["compare", "--resume", str(folder)]) == 0


ENDS = [TrainingError("another process has failed"), KeyboardInterrupt()]


def told_of(error, folder, monkeypatch, capsys):
    """What is said of a run that ends by this exception."""

    def end(*_, **__):
        raise error

    monkeypatch.setattr(trials, "diagnosed", end)
    assert main([*SETTINGS, "--out", str(folder)]) in (1, 130)
    return capsys.readouterr().err


@pytest.mark.parametrize("error", ENDS, ids=repr)
def test_an_interruption_while_the_end_is_looked_at_hides_nothing(error, tmp_path, monkeypatch, capsys):
    """As where the launcher ends the other processes of one that was killed."""
    results = folders._has_results

    def interrupted(partial):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return results(partial)

    monkeypatch.setattr(folders, "_has_results", interrupted)
    told = told_of(error, tmp_path / "run", monkeypatch, capsys)
    assert f"{tmp_path / 'run'}.partial is kept; resume with: implicit compare --resume {tmp_path / 'run'}" in told
    assert "nothing was kept" not in told


@pytest.mark.parametrize("error", ENDS, ids=repr)
def test_an_interruption_of_an_end_that_was_looked_at_hides_nothing(error, tmp_path, monkeypatch, capsys):
    undisturbed = folders._undisturbed

    @contextmanager
    def then_interrupted():
        try:
            with undisturbed():
                yield
        finally:
            raise KeyboardInterrupt

    monkeypatch.setattr(folders, "_undisturbed", then_interrupted)
    told = told_of(error, tmp_path / "run", monkeypatch, capsys)
    assert f"{tmp_path / 'run'}.partial is kept; resume with: implicit compare --resume {tmp_path / 'run'}" in told
    assert "nothing was kept" not in told


# --- the other commands ------------------------------------------------------------------------------------------


def once(original, at):
    """The function, which fails when it is called for the time of that number, from 1."""
    count = [0]

    def planted(*args, **options):
        count[0] += 1
        return fails() if count[0] == at else original(*args, **options)

    return planted, count


COMMANDS = {  # command → arguments, module, what is planted in, its calls in all
    "depth": (["--widths", "6", "--batches", "2", "--depths", "1,2,3"], "experiments.commands.depth.measured", 3),
    "sweeps": (["--seeds", "1", "--epochs", "1"], "experiments.commands.sweeps.train", 2),
    "universality": (
        ["--models", "gd", "--depths", "1,2", "--seeds", "2", "--epochs", "1"],
        "experiments.commands.universality.train",
        4,
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_other_commands_go_on_too(command, tmp_path, monkeypatch, capsys):
    arguments, place, calls = COMMANDS[command]
    monkeypatch.setattr(sweeps, "TRAINED", (1, 2))
    monkeypatch.setattr(sweeps, "DEPTH", 2)
    folder = tmp_path / "run"
    original = getattr(importlib.import_module(f"experiments.commands.{command}"), place.rpartition(".")[2])
    with monkeypatch.context() as patch:
        planted, count = once(original, at=2)
        patch.setattr(place, planted)
        assert main([command, *arguments, "--out", str(folder)]) == 1
    assert count == [calls]
    printed = capsys.readouterr().out
    assert f"figure: {folder / command}.png" in printed.replace("\n", "")
    assert f"resume with: implicit {command} --resume {folder}" in printed.replace("\n", "")
    (failure,) = json.loads((folder / "results.json").read_text())["failures"]
    assert "Planted: planted" in (folder / failure["log"]).read_text()
    with monkeypatch.context() as patch:
        planted, count = once(original, at=0)
        patch.setattr(place, planted)
        patch.setattr(
            f"experiments.commands.{command}.{'times_against_depth' if command == 'depth' else '_drawn'}", fails
        )
        assert main([command, "--resume", str(folder)]) == 1  # what was missing is there, and the figure is not
    assert count == [1]
    (failure,) = json.loads((folder / "results.json").read_text())["failures"]
    assert failure["what"] == f"the figure {command}"
    with monkeypatch.context() as patch:
        planted, count = once(original, at=0)
        patch.setattr(place, planted)
        assert main([command, "--resume", str(folder)]) == 0
    assert count == [0]
    assert json.loads((folder / "results.json").read_text())["failures"] == []
    assert not (folder / "unfinished").exists()
    assert not logs(folder)


# --- several processes -------------------------------------------------------------------------------------------


def test_a_network_that_fails_in_every_process_costs_the_others_nothing(tmp_path):
    (tmp_path / "planted.py").write_text(
        "from torch import nn\n"
        "class Broken(nn.Module):\n"
        "    def __init__(self, task):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(2, 2)\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            raise RuntimeError('planted')\n"
        "        return self.linear(x)\n"
    )
    models = "gd,planted:Broken,nesterov"
    arguments = ["compare", "rings", "--no-search", "--epochs", "1", "--seeds", "1", "--models", models, "--out", "run"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "experiments", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=240)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["models"]) == ["gd", "nesterov"], result.stderr
    assert results["missing"] == ["planted:Broken"]
    assert results["command"] == f"torchrun --nproc-per-node 2 -m experiments {shlex.join(arguments)}"
    (log,) = (tmp_path / "run" / "logs").glob("planted-Broken-*/seed-0/training.log")
    assert "RuntimeError: planted" in log.read_text()
    assert result.returncode == 1
    assert "report: run/report.html" in result.stdout


# --- the notes ---------------------------------------------------------------------------------------------------


def test_figures_that_are_drawn_or_fail_are_closed_and_those_of_the_caller_are_not(tmp_path):
    own, before = plt.figure(), plt.get_fignums()
    failures = Failures()
    failures.folder = tmp_path
    for draw in (plt.figure, lambda: fails(plt.figure())):
        Pieces(tmp_path, failures).figure("picture", draw)
    assert plt.get_fignums() == before
    assert [failure.what for failure in failures.found] == ["the figure picture"]
    plt.close(own)


def test_failures_are_noted_where_they_belong(tmp_path):
    told = []
    failures = Failures(told.append)
    failures.folder = tmp_path
    part = failures.within("gd, seed 3", "gd/seed-3")
    assert part.attempt("the score", lambda: 3) == 3
    assert part.attempt("the score", lambda: 1 / 0) is None
    (failure,) = failures.found
    assert part.found == [failure]
    assert str(failure) == (
        "the score of gd, seed 3 failed (ZeroDivisionError: division by zero); see logs/gd/seed-3/score.log"
    )
    assert told == [str(failure)]
    assert alike([failure, replace(failure, part="gd, seed 4"), replace(failure, error="another")]) == [
        [failure, replace(failure, part="gd, seed 4")],
        [replace(failure, error="another")],
    ]
    assert "ZeroDivisionError" in (tmp_path / failure.log).read_text()
    part.attempt("the score", lambda: 3)
    assert not (tmp_path / failure.log).exists()
    for ending in (InputError, BrokenPipeError, KeyboardInterrupt):

        def end(ending=ending):
            raise ending("ends the run")

        with pytest.raises(ending):
            part.attempt("the score", end)
    assert len(failures.found) == 1
    assert Failures().attempt("a silent error", lambda: nn.Linear(2, 2)(3)) is None
