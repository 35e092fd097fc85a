"""The command line: what it refuses, and what a whole small run leaves."""

import io
import json
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
from rich.console import Console
from torch import nn

from experiments.cli import main
from experiments.contestants.own import known
from experiments.measuring.measure import Measurement
from experiments.reporting.comparison import Comparison, Row, Run
from experiments.reporting.table import columns, print_table
from experiments.tasks.make import make_task
from experiments.tasks.small import rings
from experiments.training.train import Training


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["compare", "svhn"], "unknown task 'svhn'. Choose from digits, "),
        (["compare", "digits", "--epochs", "0"], "'0' is not a whole number of at least 1"),
        (
            ["compare", "digits", "--epoch", "3"],
            "unrecognized arguments: --epoch 3; did you mean '--epochs'?; see",
        ),
        (["compair", "digits"], "invalid choice: 'compair'; did you mean 'compare'?"),
        (["compare", "digit"], "unknown task 'digit'; did you mean 'digits'?"),
        (["compare", "rings", "--models", "gd,ppa-implict"], "; did you mean 'ppa-implicit'?"),
        (["compare", "rings", "--baseline", "gdd"], "unknown baseline 'gdd'; did you mean"),
        (["compare", "rings", "--match", "flop"], "invalid choice: 'flop'; did you mean 'flops'?"),
        (["compare", "rings", "--learning-rate", "0"], "'0' is not a number above 0"),
        (["compare", "rings", "--optimizer", "adan"], "unknown optimizer 'adan'; did you mean 'adam'?"),
        (["compare", "digits", "--seeds", "1.5"], "'1.5' is not a whole number"),
        (["compare", "digits", "--lr", "3"], "unrecognized arguments: --lr 3"),
        (["compare", "rings", "--models", "gd,resnet"], "unknown model 'resnet'. Choose from gd, "),
        (["compare", "rings", "--device", "tpu"], "--device tpu cannot be used"),
        (["compare", "rings", "--match", "luck"], "invalid choice: 'luck'"),
        (["compare", "rings", "--data", "."], "task rings brings its own data"),
        (["compare", "rings", "--download"], "task rings brings its own data"),
        (["universality", "--depths", "4,2"], "'4,2' is not strictly increasing"),
        (["universality", "--depths", "4,x"], "'x' is not a whole number"),
        (["universality", "--depths", "4"], "a slope needs at least two depths"),
        (["universality", "--models", "gd,resnet"], "unknown model 'resnet'. Choose from gd, "),
        (["universality", "--models", "pgd-deq"], "unknown model 'pgd-deq'"),
        (["depth", "--widths", "12,16"], "--widths 16 is not a multiple of the 3 attention heads"),
        (["depth", "--batches", "0"], "'0' is not a whole number of at least 1"),
        (["sweeps", "--seeds", "0"], "'0' is not a whole number of at least 1"),
        (["compare", "rings", "--out", "taken"], "--out taken exists and is not an empty folder"),
        (["compare", "rings", "--out", "taken/file/run"], "--out taken/file/run cannot be used"),
        (["compare", "rings", "--out", "busy"], "busy.partial exists"),
        (["compare", "rings", "--out", "."], "--out . exists and is not an empty folder"),
        (["compare", "rings", "--out", "a" * 300], "File name too long"),
        (["compare"], "compare needs a task, or --resume RUN"),
        (["compare", "--resume", "nowhere"], "was not started: there is no nowhere.partial"),
        (["compare", "--resume", "busy"], "settings.json cannot be read"),
        (["compare", "rings", "--devices", "0"], "'0' is not a whole number of at least 1"),
        (["compare", "rings", "--precision", "8"], "invalid choice: '8'"),
        (["compare", "rings", "--precision", "16"], "--precision 16 needs a GPU"),
        (["compare", "rings", "--strategy", "fsdp"], "--strategy fsdp needs several processes"),
        (["compare", "rings", "--nodes", "2"], "MASTER_ADDR, MASTER_PORT, NODE_RANK must be set"),
        (["universality", "--devices", "2"], "unrecognized arguments: --devices 2"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "busy.partial").mkdir()
    before = sorted(tmp_path.rglob("*"))
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own way out
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["--version"]])
def test_help_and_version_need_no_pytorch(arguments):
    script = "import sys, experiments.cli as it\ntry: it.main(sys.argv[1:])\nfinally: print(list(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "lightning", "matplotlib"} & set(re.findall(r"'([a-z]+)'", result.stdout))


def test_the_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"implicit-networks \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_tasks_recipes_and_models_are_listed(capsys):
    assert main(["compare", "--list"]) == 0
    text = capsys.readouterr().out
    for name in ("digits", "imagenet", "@cifar10-implicit"):
        assert f"  {name} " in text
    assert main(["compare", "digits", "--list"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  pgd-deq +equilibrium: infinite depth", text, flags=re.MULTILINE)
    assert re.search(r"^  vit \* ", text, flags=re.MULTILINE)
    assert main(["compare", "cifar10", "--list"]) == 2
    assert "pass --data DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["compare", "--list"], ["compare", "rings", "--no-search", "--epochs", "1", "--models", "gd"]]
)
def test_a_reader_that_has_gone_ends_the_run_as_documented(arguments, tmp_path):
    command = [sys.executable, "-m", "experiments", *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # what `| head -0` does
        error = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in error


@pytest.mark.parametrize(("package", "extra"), [("lightning", "train"), ("matplotlib", "plots")])
def test_a_missing_package_is_named_with_its_extra(package, extra, tmp_path):
    (tmp_path / f"{package}.py").write_text("raise ImportError('broken on purpose')\n")
    result = run("compare", "rings", cwd=tmp_path)  # the folder comes first where modules are sought
    assert result.returncode == 2
    assert f"pip install 'implicit-networks[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_help_shows_each_default():
    text = run("compare", "--help").stdout
    for option in ("--models", "--match", "--epochs", "--seeds", "--data", "--out", "--device"):
        section = text.split(f"  {option} ")[1].split("\n  --")[0]
        assert "default:" in section, option


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, capsys):
    import experiments.running.trials

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments.running.trials, "train", interrupt)
    assert main(["compare", "rings", "--out", str(tmp_path / "run")]) == 130
    assert not list(tmp_path.iterdir())
    assert "interrupted" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    settings = ["--epochs", "2", "--rows", "1500", "--seeds", "2", "--models", "gd,pgd-implicit,pgd-deq"]
    result = run("compare", "rings", "--no-search", *settings, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "rings-1", result


def test_a_run_ends_with_the_table_and_the_reports_path(finished):
    _, result = finished
    lines = result.stdout.strip().splitlines()
    assert lines[-1] == "report: runs/rings-1/report.html"
    for name in ("gd", "pgd-implicit", "pgd-deq"):
        assert any(line.strip().startswith(name) for line in lines[-8:])
    assert "Warning" not in result.stderr, result.stderr


def test_a_run_leaves_its_folder(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "results.json", "report.html", "table.md", "checkpoints", "logs",
        "boundaries.png", "differences.png", "training.png", "residuals.png", "steps.png", "eigenvalues.png",
        "evaluations.png", "cost.png",
    }  # fmt: skip
    assert (folder / "checkpoints" / "pgd-deq-seed-1" / "last.ckpt").is_file()
    assert "test_score" in (folder / "logs" / "pgd-deq" / "seed-1" / "metrics.csv").read_text()
    assert not folder.with_name("rings-1.partial").exists()


def test_results_hold_every_number(finished):
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    assert results["seeds"] == [0, 1]
    assert {"torch", "python", "lightning"} <= set(results["versions"])
    assert results["machine"]["cores"] >= 1
    budget = results["models"]["gd"]["parameters"]
    for name, model in results["models"].items():
        assert abs(model["parameters"] - budget) <= 0.06 * budget
        assert len(model["runs"]) == 2
        for trained in model["runs"]:
            assert 0.5 < trained["score"] <= 1
            assert trained["margin"] > 0
            assert trained["flops"] > 0
            assert trained["saved_bytes"] > 0
            assert set(trained["latency"]) == {"1", "256"}
            assert len(trained["curves"]) == len(trained["seconds_per_epoch"]) == 2
            solves = {"gd": 0, "pgd-implicit": 6, "pgd-deq": 1}[name]
            assert len(trained["residual_quantiles"]) == solves
            assert (trained["forward_evaluations"] > 0) == (trained["backward_evaluations"] > 0) == (solves > 0)
            assert trained["converged"] == 1.0
        scores = np.array([[trained["score"] for trained in results["models"][n]["runs"]] for n in (name, "gd")])
        differences = scores[0] - scores[1]
        if name == "gd":
            assert model["difference"] is None
        else:
            assert model["difference"]["mean"] == pytest.approx(differences.mean())
            half = 12.7062047 * differences.std(ddof=1) / 2**0.5  # Student's t with one degree of freedom
            assert model["difference"]["high"] == pytest.approx(differences.mean() + half, abs=1e-5)


def test_the_report_needs_nothing_but_itself(finished):
    folder, _ = finished
    page = (folder / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 7
    assert page.count("<svg") == 1  # of the training, to pick curves from
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page
    for name in ("gd", "pgd-implicit", "pgd-deq"):
        assert f'<th scope="row">{name}</th>' in page


def test_the_same_seeds_give_the_same_numbers(finished, tmp_path):
    folder, _ = finished
    again = ["--epochs", "2", "--rows", "1500", "--seeds", "1", "--models", "pgd-deq", "--out", str(tmp_path / "again")]
    assert main(["compare", "rings", "--no-search", *again]) == 0
    first = json.loads((folder / "results.json").read_text())["models"]["pgd-deq"]["runs"][0]
    again = json.loads((tmp_path / "again" / "results.json").read_text())["models"]["pgd-deq"]["runs"][0]
    assert first["curves"] == again["curves"]
    assert first["score"] == again["score"]


def listen_to_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_end_from_outside_keeps_the_last_checkpoint_and_says_how_to_go_on(ending, tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments",
        "compare",
        "rings",
        "--no-search",
        "--epochs",
        "500",
        "--out",
        "run",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a run in the background inherits an ignored SIGINT
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=listen_to_interrupts, **pipes) as process:
        checkpoint = tmp_path / "run.partial" / "checkpoints" / "gd-seed-0" / "last.ckpt"
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.05)
        process.send_signal(ending)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error == "implicit: interrupted; run.partial is kept; resume with: implicit compare --resume run\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run.partial"]
    assert checkpoint.exists()


def test_a_folder_may_be_reached_by_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    quick = ["compare", "rings", "--no-search", "--rows", "500", "--epochs", "1", "--seeds", "1", "--models", "gd"]
    assert main([*quick, "--out", "link"]) == 0
    assert (tmp_path / "empty" / "report.html").is_file()


def test_a_training_that_diverges_is_shown(tmp_path, monkeypatch):
    def steep():
        return replace(rings(), learning_rate=1e18)

    monkeypatch.setattr("experiments.tasks.small.rings", steep)
    arguments = ["--epochs", "1", "--seeds", "1", "--models", "gd,pgd-deq", "--out", str(tmp_path / "run")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["compare", "rings", "--no-search", *arguments]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["models"]["gd"]["runs"][0]["curves"][0]["train_loss"] is None
    (finding,) = results["models"]["pgd-deq"]["diagnosis"]["findings"]
    assert finding["name"] == "rows that are not finite"
    assert "Rows that are not finite" in (tmp_path / "run" / "report.html").read_text()


def test_networks_of_equal_work(tmp_path):
    quick = ["--epochs", "1", "--rows", "1000", "--seeds", "1", "--models", "gd,ppa-implicit", "--match", "flops"]
    assert main(["compare", "rings", "--no-search", *quick, "--out", str(tmp_path / "run")]) == 0
    models = json.loads((tmp_path / "run" / "results.json").read_text())["models"]
    assert models["ppa-implicit"]["parameters"] < 0.5 * models["gd"]["parameters"]  # it works more for each of them
    ratio = models["ppa-implicit"]["runs"][0]["flops"] / models["gd"]["runs"][0]["flops"]
    assert 0.5 < ratio < 2  # training changes what a solve takes


def test_universality_fits_a_slope(tmp_path, capsys):
    quick = ["--models", "gd,gd", "--depths", "1,2", "--seeds", "2", "--epochs", "1"]
    assert main(["universality", *quick, "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["mean squared error"]["gd"]) == {"1", "2"}
    assert all(len(runs) == 2 for runs in results["mean squared error"]["gd"].values())
    assert results["slopes"]["gd"]["low"] <= results["slopes"]["gd"]["value"] <= results["slopes"]["gd"]["high"]
    assert (tmp_path / "run" / "universality.png").stat().st_size > 10_000
    assert "95 % interval" in capsys.readouterr().out


def test_depth_times_every_reading(tmp_path, capsys):
    sizes = ["--widths", "6", "--batches", "2", "--depths", "1,3"]
    assert main(["depth", *sizes, "--out", str(tmp_path / "run")]) == 0
    shallow, deep = json.loads((tmp_path / "run" / "results.json").read_text())["records"]
    assert (shallow["depth"], deep["depth"]) == (1, 3)
    readings = {"serial", "implicit (pgd)", "Para-Former, batched", "1 sweep"}
    for record, names in ((shallow, readings), (deep, readings | {"2 sweeps"})):
        for kind in ("inference", "training step"):
            assert set(record["seconds"][kind]) == names
            assert all(seconds > 0 for times in record["seconds"][kind].values() for seconds in times)
    assert deep["errors"]["3"] < 1e-5 < deep["errors"]["2"] < deep["errors"]["1"]
    assert (tmp_path / "run" / "depth.png").stat().st_size > 10_000
    text = capsys.readouterr().out
    assert "÷ serial" in text
    assert "largest Lyapunov exponent" in text


def test_no_figure_is_of_another_task(tmp_path):
    quick = ["--epochs", "1", "--seeds", "1", "--models", "gd,gd-parallel"]
    assert main(["compare", "rings", "--no-search", *quick, "--out", str(tmp_path / "run")]) == 0
    assert {path.name for path in (tmp_path / "run").glob("*.png")} <= {"boundaries.png", "cost.png"}
    assert "One seed says nothing about differences" in (tmp_path / "run" / "report.html").read_text()


def test_sweeps_runs_what_it_trained_with_any_number_of_sweeps(tmp_path, monkeypatch, capsys):
    import experiments.commands.sweeps

    monkeypatch.setattr(experiments.commands.sweeps, "TRAINED", (1, 8))
    assert main(["sweeps", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["accuracy"]) == {"1", "8"}
    for trained, by_run in results["accuracy"].items():
        assert set(by_run) == set(map(str, range(1, 9)))
        assert by_run[trained][0] >= 0.5  # it has learned for the sweeps that it was trained with
    assert results["accuracy"]["8"]["7"] != results["accuracy"]["8"]["1"]
    assert (tmp_path / "run" / "sweeps.png").stat().st_size > 10_000
    assert "trained with K sweeps" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_table_is_whole_on_every_terminal(width, finished):
    folder, _ = finished
    numbers = json.loads((folder / "results.json").read_text())
    row = make_row("pgd-implicit", numbers["models"]["pgd-implicit"])
    console = Console(width=width, file=io.StringIO())
    comparison = Comparison(make_task("rings"), [row], {})
    print_table(comparison, console)
    text = console.file.getvalue()
    assert "…" not in text
    for heading in columns(comparison):
        assert heading in text
    assert max(map(len, text.splitlines())) <= width


def test_several_baselines_are_each_named(finished):
    folder, _ = finished
    numbers = json.loads((folder / "results.json").read_text())["models"]
    first, second = (make_row(name, numbers[name]) for name in ("gd", "pgd-implicit"))
    third = replace(second, name="third", contestant=replace(second.contestant, baseline="pgd-implicit"))
    comparison = Comparison(make_task("rings"), [first, second, third], {})
    _, shown = columns(comparison)["– its baseline"]
    assert shown(first) == "baseline"
    assert shown(second).endswith(" to gd")
    assert shown(third).endswith(" to pgd-implicit")
    assert columns(replace(comparison, rows=[first, second]))["– gd"][1](second).count("to") == 0


def make_row(name, numbers):
    """A row of the table as it was before it was written."""
    contestant = known("rings", make_task("rings"))[name]
    keys = [field.name for field in fields(Measurement) if field.name not in ("solutions", "latency")]
    runs = []
    for one in numbers["runs"]:
        latency = {int(batch): seconds for batch, seconds in one["latency"].items()}
        measurement = Measurement(**{key: one[key] for key in keys}, latency=latency, solutions=[])
        runs.append(Run(one["seed"], Training(one["curves"], one["seconds_per_epoch"]), measurement, nn.Identity()))
    return Row(name, contestant, numbers["parameters"], numbers["size"], runs, numbers["learning_rate"])
