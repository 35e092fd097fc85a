"""Every command on every device at hand, and what belongs to a task on whatever device it is moved to."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

import experiments.commands.sweeps
import experiments.tasks.deblurring
import experiments.tasks.small
import experiments.tasks.sudoku
from experiments.cli import main
from experiments.contestants.own import known
from experiments.tasks.make import make_task
from tests.conftest import DEVICES
from tests.moving import held, left_behind

SMALL = ["--epochs", "1", "--seeds", "1"]
ON_A_PROCESSOR = ("compare parity", "compare telgarsky", "compare digits", "universality")
COMMANDS = {
    "compare rings": [*SMALL, "--models", "gd,pgd-implicit,pgd-deq,gd-parallel,mondeq"],
    "compare parity": ["--no-search", *SMALL, "--models", "gd,nesterov-parallel"],
    "compare telgarsky": ["--no-search", *SMALL, "--models", "gd,pdhg-parallel"],
    "compare digits": [
        "--no-search",
        *SMALL,
        "--models",
        "gd,pgd-deq,gd-parallel,mdeq,paraformer,paraformer-progressive",
    ],
    "compare deblur": ["--no-search", *SMALL, "--models", "classical,pgd-explicit,pgd-implicit"],
    "compare sudoku": ["--no-search", *SMALL, "--models", "looped-poisson,looped-segments,deq-jfb,stack"],
    "depth": ["--widths", "6", "--batches", "1,2", "--depths", "1,3"],
    "sweeps": SMALL,
    "universality": [*SMALL, "--models", "gd,pgd-implicit", "--depths", "1,2,3"],
}
# the others run on a processor in the tests of their own
CASES = [(device, name) for device in DEVICES for name in COMMANDS if device != "cpu" or name in ON_A_PROCESSOR]


def few(task):
    """A task on few of its data."""

    def make():
        whole = task()
        train, test = (TensorDataset(*(part[:96] for part in data.tensors)) for data in (whole.train, whole.test))
        return replace(whole, train=train, test=test, measured=32)

    return make


@pytest.mark.parametrize(("device", "command"), CASES)
def test_every_command_ends_with_its_result(command, device, tmp_path, monkeypatch):
    small, deblurring = experiments.tasks.small, experiments.tasks.deblurring
    small_tasks = (small, ("rings", "parity", "telgarsky", "digits"))
    for module, names in (small_tasks, (deblurring, ("deblur",)), (experiments.tasks.sudoku, ("sudoku",))):
        for name in names:
            monkeypatch.setattr(module, name, few(getattr(module, name)))
    monkeypatch.setattr(experiments.commands.sweeps, "TRAINED", (1, 2))
    monkeypatch.setattr(experiments.commands.sweeps, "DEPTH", 3)
    monkeypatch.setattr(sys.modules["experiments.reporting.figures.restorations"], "DEPTHS", (1, 2))
    monkeypatch.setattr("experiments.measuring.measure.LATENCY_SECONDS", 0.01)
    folder = tmp_path / "run"
    assert main([*command.split(), *COMMANDS[command], "--device", device, "--out", str(folder)]) == 0
    assert json.loads((folder / "results.json").read_text())["failures"] == []
    assert (folder / ("report.html" if command.startswith("compare") else f"{command}.png")).stat().st_size > 10_000


def test_another_default_device_changes_nothing(device, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.tasks.small.rings", few(experiments.tasks.small.rings))
    with torch.device("meta"):  # on which nothing has a value
        arguments = [*SMALL, "--models", "gd,pgd-deq", "--device", device, "--out", str(tmp_path / "run")]
        assert main(["compare", "rings", "--no-search", *arguments]) == 0


@pytest.mark.parametrize("task", ["digits", "rings", "deblur", "sudoku"])
def test_networks_and_goals_hold_their_tensors_where_they_are_moved(task):
    data = make_task(task)
    for name, contestant in known(task, data).items():
        network = contestant.build(contestant.size).to("meta")
        assert not list(left_behind(network)), name
        tensors = [*network.parameters(), *network.buffers()]
        assert all(tensor.is_meta for tensor in tensors), name
    assert not list(held(vars(data.goal), "goal"))
