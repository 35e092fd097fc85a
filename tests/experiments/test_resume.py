"""Runs that were killed go on, to the numbers of a run that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.cli import main
from experiments.contestants.own import known
from experiments.tasks.make import make_task
from experiments.training.learner import Learner
from experiments.training.train import train

SETTINGS = ["compare", "rings", "--no-search", "--epochs", "3", "--seeds", "1", "--models", "gd,pgd-deq"]


def numbers(folder):
    """All that is no time."""
    models = json.loads((folder / "results.json").read_text())["models"]
    times = ("seconds_per_epoch", "latency")
    return {
        name: [{key: value for key, value in one.items() if key not in times} for one in model["runs"]]
        for name, model in models.items()
    }


def start(*arguments, cwd):
    """A run in a process group of its own."""
    command = [sys.executable, "-m", "experiments", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=cwd, start_new_session=True, **pipes)


def wait_for_epochs(metrics, count):
    """Until so many epochs have been logged, and not for ever."""
    deadline = time.monotonic() + 90
    while not metrics.exists() or len(metrics.read_text().splitlines()) <= count:
        assert time.monotonic() < deadline, "no epoch came to an end"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that SIGKILL met while its second network was under way."""
    folder = tmp_path_factory.mktemp("killed")
    with start(*SETTINGS, "--out", "run", cwd=folder) as process:
        wait_for_epochs(folder / "run.partial" / "logs" / "pgd-deq" / "seed-0" / "metrics.csv", 1)
        assert main(["compare", "--resume", str(folder / "run")]) == 2  # it is under way
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    return folder


def test_a_killed_run_ends_at_the_numbers_of_one_that_was_not(killed, tmp_path, capsys):
    shutil.copytree(killed / "run.partial", tmp_path / "run.partial")
    assert main(["compare", "--resume", str(tmp_path / "run.partial")]) == 0
    printed = capsys.readouterr().out
    assert "epoch 3/3, test accuracy %" in printed
    assert main([*SETTINGS, "--out", str(tmp_path / "whole")]) == 0
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    logs = [tmp_path / name / "logs" / "pgd-deq" / "seed-0" / "metrics.csv" for name in ("run", "whole")]
    assert logs[0].read_text() == logs[1].read_text()
    assert set(os.listdir(tmp_path / "run")) == set(os.listdir(tmp_path / "whole"))
    assert not (tmp_path / "run.partial").exists()
    capsys.readouterr()
    assert main(["compare", "--resume", str(tmp_path / "run")]) == 2
    assert "is complete: there is nothing to resume" in capsys.readouterr().err


def spoil(path):
    path.write_bytes(path.read_bytes()[:1000])


def exchange(path):
    torch.save({"run": {"task": "digits", "network": "gd", "seed": 3, "epochs": 3}, "state_dict": {}}, path)


def foreign(path):
    torch.save({"weights": torch.zeros(3)}, path)


def executable(path):
    torch.save({"run": nn.Linear(2, 2)}, path)  # loading it would run code


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("checkpoints/pgd-deq-seed-0/last.ckpt", spoil, "cannot be read as a checkpoint"),
        ("checkpoints/pgd-deq-seed-0/last.ckpt", executable, "cannot be read as a checkpoint (Weights only load"),
        ("checkpoints/pgd-deq-seed-0/last.ckpt", exchange, "is a checkpoint of task digits, network gd, seed 3"),
        ("checkpoints/pgd-deq-seed-0/last.ckpt", foreign, "is a checkpoint of something else, not of task rings"),
        ("unfinished/gd-seed-0.pt", spoil, "remove it to measure this network again"),
        ("unfinished/gd-seed-0.pt", foreign, "does not hold results of this network"),
        ("unfinished/settings.json", spoil, "and start again"),
        ("unfinished/settings.json", lambda path: path.write_text("{}"), "name no task"),
        ("unfinished/settings.json", lambda path: path.unlink(), "cannot be read"),
    ],
)
def test_what_is_damaged_or_foreign_is_refused_and_kept(file, change, message, killed, tmp_path, capsys):
    shutil.copytree(killed / "run.partial", tmp_path / "run.partial")
    path = tmp_path / "run.partial" / file
    if change is spoil and path.suffix == ".json":
        path.write_text("{")
    else:
        change(path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", "--resume", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "remove" in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "5"], "the run was started with --epochs 3: leave out 5"),
        (["digits"], "the run was started with the task rings: leave out digits"),
        (["--precision", "bf16"], "the run was started with --precision 32"),
        (["--out", "elsewhere"], "--resume already names the folder of the run: leave out --out"),
    ],
)
def test_a_run_goes_on_under_its_own_settings(arguments, message, killed, capsys):
    assert main(["compare", "--resume", str(killed / "run"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_kept_run_is_named_to_whoever_starts_it_anew(killed, capsys):
    assert main([*SETTINGS, "--out", str(killed / "run")]) == 2
    assert f"resume with: implicit compare --resume {killed / 'run'}, or remove it" in capsys.readouterr().err
    assert main(["compare", "--resume", str(killed / "other")]) == 2
    assert "was not started" in capsys.readouterr().err


class Stop(Exception):
    pass


def dropout(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))


def progressive(task):
    return known("digits", task)["paraformer-progressive"].build(16)


def spectral(task):
    normalised = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(64, 32))
    return nn.Sequential(nn.Flatten(), normalised, nn.ReLU(), nn.Linear(32, 10))


def noisy(pairs):
    """Augmentation: noise from the generator of whoever collates."""
    inputs, targets = torch.utils.data.default_collate(pairs)
    return inputs + 0.1 * torch.randn(inputs.shape), targets


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (dropout, {}),
        (dropout, {"collate": noisy}),
        (dropout, {"collate": noisy, "workers": 2}),
        (dropout, {"averaging": 0.9}),
        (spectral, {"averaging": 0.9}),
        pytest.param(progressive, {}, id="progressive"),
    ],
)
@pytest.mark.parametrize("at", [1, 3])
def test_a_training_goes_on_bit_for_bit(make, changes, at, tmp_path, monkeypatch):
    task = make_task("digits")
    few = torch.utils.data.TensorDataset(*(tensor[:300] for tensor in task.train.tensors))
    task = replace(task, train=few, **changes)

    def trained(folder, resume=False):
        torch.manual_seed(0)
        network = make(task)
        options = {"epochs": 3, "seed": 5, "device": "cpu", "folder": tmp_path / folder, "name": "net"}
        return train(network, task, **options, resume=resume).curves, network.state_dict()

    curves, weights = trained("whole")
    end = Learner.on_train_epoch_end
    if at < 3:

        def stop(self):
            if self.trainer.current_epoch == at:
                raise Stop
            end(self)

        monkeypatch.setattr(Learner, "on_train_epoch_end", stop)
        with pytest.raises(Stop):
            trained("broken")
        monkeypatch.setattr(Learner, "on_train_epoch_end", end)
    else:  # it came to its end, and was not measured
        trained("broken")
    again, restored = trained("broken", resume=True)
    assert again == curves
    assert len(curves) == 3
    for name, value in weights.items():
        assert torch.equal(restored[name], value), name
