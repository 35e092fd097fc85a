"""Several processes train as one does, and end together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

from experiments.cli import main
from experiments.contestants.own import known
from experiments.errors import InputError
from experiments.tasks.goals import Classification
from experiments.tasks.make import make_task
from experiments.tasks.task import Task
from experiments.training.precision import met
from experiments.training.shares import Shares, check_divides
from experiments.training.team import Team
from experiments.training.train import train

SETTINGS = ["compare", "rings", "--no-search", "--epochs", "2", "--seeds", "1", "--rows", "1000"]
SETTINGS += ["--models", "gd,pgd-deq"]
PATIENCE = 150


def runs(folder):
    models = json.loads((folder / "results.json").read_text())["models"]
    return {name: model["runs"][0] for name, model in models.items()}


def weights(folder, name):
    path = folder / "checkpoints" / f"{name}-seed-0" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


@contextmanager
def start(*arguments, cwd, launcher=("-m", "experiments"), **variables):
    """A process that, with those that it starts, ends with the block at the latest: one that hangs hangs no tests."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *launcher, *arguments]
    with subprocess.Popen(command, cwd=cwd, env=environment, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One process's run."""
    folder = tmp_path_factory.mktemp("single") / "run"
    assert main([*SETTINGS, "--out", str(folder)]) == 0
    return folder


def assert_alike(found, expected, tolerance):
    """Losses and scores of all epochs, and the last weights, up to rounding."""
    for name, one in runs(expected).items():
        other = runs(found)[name]
        assert other["score"] == pytest.approx(one["score"], abs=1e-3)
        assert len(other["curves"]) == len(one["curves"])
        for mine, its in zip(one["curves"], other["curves"], strict=True):
            assert its == pytest.approx(mine, rel=1e-3, abs=tolerance)
        for key, value in weights(expected, name).items():
            other_value = weights(found, name)[key]
            if name.endswith("deq"):
                # an equilibrium is known to 1e-4, and Adam takes a step of full length wherever a gradient is not zero
                assert (other_value - value).norm() <= 5e-3 * value.norm()
            else:
                torch.testing.assert_close(other_value, value, rtol=tolerance, atol=10 * tolerance)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The runs of two processes, with each strategy."""
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "experiments")
    folders = {}
    for strategy in ("ddp", "fsdp"):
        folder = tmp_path_factory.mktemp(strategy)
        with start(*SETTINGS, "--strategy", strategy, "--out", "run", cwd=folder, launcher=torchrun) as process:
            output, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error
        assert output.count("report: run/report.html") == 1
        assert output.count(", seed 0") == 2  # the leading process alone speaks
        assert f"on 2 processes ({strategy}) on cpu" in output
        folders[strategy] = folder / "run"
    return folders


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_of_torchrun_train_as_one(strategy, single, pair):
    folder = pair[strategy]
    assert_alike(folder, single, 1e-5)
    for name in ("gd", "pgd-deq"):
        assert os.listdir(folder / "checkpoints" / f"{name}-seed-0") == ["last.ckpt"]
        logs = folder / "logs" / name / "seed-0"
        assert sorted(os.listdir(logs)) == ["metrics.csv", "rank-0.csv", "rank-1.csv"]
        tables = [(logs / f"rank-{rank}.csv").read_text().splitlines() for rank in (0, 1)]
        assert tables[0][0] == "epoch,rows,loss,seconds"
        for epoch, mean in enumerate(one["train_loss"] for one in runs(single)[name]["curves"]):
            own = [float(table[1 + epoch].split(",")[2]) for table in tables]
            assert own[0] != own[1]  # each has seen rows of its own
            assert sum(own) / 2 == pytest.approx(mean, rel=1e-3)


def test_two_machines_without_torchrun_train_as_one(single, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    arguments = [*SETTINGS, "--nodes", "2", "--out", "run"]
    with (
        start(*arguments, cwd=tmp_path, NODE_RANK="0", **meeting) as first,
        start(*arguments, cwd=tmp_path, NODE_RANK="1", **meeting) as second,
    ):
        output, error = first.communicate(timeout=PATIENCE)
        other, failure = second.communicate(timeout=PATIENCE)
    assert (first.returncode, second.returncode) == (0, 0), error + failure
    assert "report: run/report.html" in output
    assert "seed 0" in output
    assert "seed 0" not in other  # the leading process alone speaks
    assert "report" not in other
    assert_alike(tmp_path / "run", single, 1e-5)


def test_processes_that_were_killed_end_the_others_and_the_run_goes_on(pair, tmp_path):
    rank = tmp_path / "run.partial" / "logs" / "pgd-deq" / "seed-0" / "rank-1.csv"
    with start(*SETTINGS, "--devices", "2", "--out", "run", cwd=tmp_path) as process:
        deadline = time.monotonic() + PATIENCE
        while not rank.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        listing = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        os.kill(int(listing.stdout.split()[1]), signal.SIGKILL)
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGKILL, error
    assert "process 1 of 2 was ended by SIGKILL" in error
    assert "resume with: implicit compare --resume run" in error
    assert "Traceback" not in error
    with start("compare", "--resume", "run", cwd=tmp_path) as process:  # the run knows of its two processes
        for line in process.stdout:
            if "(2/2)" in line:
                break
        process.kill()
        process.communicate(timeout=30)  # its pipes close when the processes end that it has left behind
    with start("compare", "--resume", "run", cwd=tmp_path) as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    for name, one in runs(pair["ddp"]).items():
        again = runs(tmp_path / "run")[name]
        assert again["curves"] == one["curves"]
        assert again["score"] == one["score"]
        for key, value in weights(pair["ddp"], name).items():
            assert torch.equal(weights(tmp_path / "run", name)[key], value), key
    epochs = (tmp_path / "run" / "logs" / "pgd-deq" / "seed-0" / "rank-1.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in epochs] == ["epoch", "0", "1"]


def test_shares_are_those_of_one_order():
    def order():
        return torch.Generator().manual_seed(3)

    whole = list(Shares(100, 24, Team(), order()))
    assert sorted(whole) == list(range(100))
    loader = torch.utils.data.DataLoader(range(100), 24, shuffle=True, generator=order())
    plain = order()
    torch.empty((), dtype=torch.int64).random_(generator=plain)  # as the loader draws first, for its workers
    assert [int(i) for batch in loader for i in batch] == list(Shares(100, 24, Team(), plain))
    for size in (2, 3, 4):
        parts = [Shares(100, 24, Team(rank, size), order()) for rank in range(size)]
        indices = [list(part) for part in parts]
        assert [len(part) for part in parts] == [len(part) for part in indices]
        for number in range(5):
            share = 24 // size
            batch = [i for part in indices for i in part[number * share : (number + 1) * share]]
            assert batch == whole[number * 24 : (number + 1) * 24]
            assert len(batch) == parts[0].rows(number)


def test_a_batch_that_cannot_be_shared_is_refused():
    data = TensorDataset(torch.zeros(26, 2), torch.zeros(26, dtype=torch.int64))
    task = Task("toy", data, data, goal=Classification(2), batch=12)  # the last batch has two rows
    check_divides(task, Team(size=2))
    for size in (3, 5, 24):
        with pytest.raises(InputError, match=re.escape("choose --devices × --nodes from 1, 2")):
            check_divides(task, Team(size=size))


def test_half_precision_solves_to_what_it_resolves(tmp_path):
    task = make_task("rings")
    task = replace(task, train=TensorDataset(*(tensor[:2000] for tensor in task.train.tensors)))

    def trained(precision):
        torch.manual_seed(0)
        network = known("rings", task)["pgd-deq"].build(24)
        options = {"epochs": 1, "seed": 0, "device": "cpu", "folder": tmp_path, "name": precision}
        return network, train(network, task, **options, precision=precision).curves[-1]

    (network, half), (_, single) = trained("bf16"), trained("32")
    assert half["converged"] == 1.0
    assert half["forward_evaluations"] < single["forward_evaluations"]
    assert half["train_loss"] != single["train_loss"]
    assert half["train_loss"] == pytest.approx(single["train_loss"], rel=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    layer = next(module for module in network.modules() if hasattr(module, "rtol"))
    assert layer.rtol == 1e-4
    with met(network, "bf16"):
        assert layer.rtol == layer.gradient.rtol == 2 * torch.finfo(torch.bfloat16).eps
    assert layer.rtol == layer.gradient.rtol == 1e-4
