"""Tasks and networks of a user's own, from Python and on the command line."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from experiments import Classification, Comparison, InputError, Regression, Task, compare, contestants_for
from experiments.cli import main
from experiments.contestants.own import chosen, compared_with, entered, known
from experiments.names import file_name
from experiments.running import trials
from experiments.tasks.make import make_task
from experiments.training.shares import Shares
from experiments.training.team import ALONE
from experiments.training.train import Training

NAME = 'x"/><script>alert(1)</script> [bold]&$\\frac'
MINE = '''
import torch
from torch import nn
from torch.utils.data import TensorDataset
from experiments import Classification, Task


def make_task():
    points = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(points, (points[:, 0] > 0).long())
    return Task("mine", data, data, goal=Classification(2), epochs=2, batch=32)


def make_network(task, size=8):
    """Two layers of my own."""
    return nn.Sequential(nn.Linear(2, size), nn.ReLU(), nn.Linear(size, 2))


def linear(task):
    return nn.Linear(2, 2)


def broken(task, size=8):
    raise RuntimeError("no network today")


def nothing(task):
    return None


def number():
    return 3


def untested():
    data = make_task().train
    return Task("mine", data, TensorDataset(torch.zeros(0, 2), torch.zeros(0).long()), goal=Classification(2))


def words():
    data = TensorDataset(torch.zeros(4, 5, 7), torch.arange(4) % 3)
    return Task("words", data, data, goal=Classification(3))


value = 3
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's in the working folder; gone from memory afterwards."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "faulty.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("mine", "faulty", "wrong"):
        sys.modules.pop(name, None)


@pytest.fixture
def task():
    points = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(points, (points[:, 0] > 0).long())
    return Task("halves", data, data, goal=Classification(2), epochs=2, batch=32)


def two_layers(task, size=8):
    """Two layers & <more>."""
    return nn.Sequential(nn.Linear(2, size), nn.ReLU(), nn.Linear(size, 2))


def linear(task):
    return nn.Linear(2, 2)


def results(folder):
    return json.loads((folder / "results.json").read_text())


# --- from Python -------------------------------------------------------------------------------------------------


def test_a_comparison_from_python(task, tmp_path, capsys):
    ours = contestants_for(task)
    entries = {"gd": ours["gd"], "pgd-deq": ours["pgd-deq"], NAME: two_layers, "linear": linear}
    comparison = compare(task, entries, search=False, seeds=2, baseline="gd", out=tmp_path / "run")
    assert isinstance(comparison, Comparison)
    assert comparison.failures == []
    rows = {row.name: row for row in comparison.rows}
    assert set(rows) == set(entries)
    assert rows[NAME].parameters == pytest.approx(rows["gd"].parameters, rel=0.06)  # its size was sought
    assert rows["linear"].parameters == 6
    assert comparison.difference(rows["gd"]) is None
    assert comparison.difference(rows["linear"]) is not None
    assert isinstance(rows["linear"].runs[0].network, nn.Linear)
    assert json.loads(json.dumps(comparison.to_dict()))["seeds"] == [0, 1]
    assert results(tmp_path / "run")["models"].keys() == entries.keys()
    for name in entries:
        assert name in comparison.table()
    assert f"report: {tmp_path}" in capsys.readouterr().out
    pages = [tmp_path / "run" / "report.html", comparison.report(tmp_path / "again")]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"the report cannot be written into .*file.again: "):
        comparison.report(tmp_path / "file" / "again")
    for page in pages:
        text = page.read_text()
        assert "<script" not in text
        assert "x&#34;/&gt;&lt;script&gt;alert(1)&lt;/script&gt; [bold]&amp;$\\frac" in text
        assert "Two layers &amp; &lt;more&gt;" in text
        assert "…}, seeds=2, epochs=2, search=False, baseline=&#39;gd&#39;" in text
        assert "experiments.compare(task, {&#39;gd&#39;: …, &#39;pgd-deq&#39;: …, " in text
        assert "AdamW, batches of 32, weight decay 0.01, one-cycle schedule" in text
    assert (tmp_path / "again" / "training.png").exists()
    table = (tmp_path / "run" / "table.md").read_text().splitlines()
    lines = [line for line in table if line.startswith("| ")]
    assert len(lines) == 2 + len(entries)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1  # as many cells in each line
    assert "\\<script>" in "".join(lines)
    assert comparison.verdict() in table
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert len(names) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9.+_-]+", name) for name in names)


def test_what_fails_costs_the_others_nothing_and_is_done_when_resumed(task, tmp_path, monkeypatch):
    def failing(task):
        raise RuntimeError("no network <today>")

    entries = {"linear": linear, "failing": failing}
    first = compare(task, entries, search=False, seeds=1, epochs=1, out=tmp_path / "run")
    assert [row.name for row in first.rows] == ["linear"]
    assert first.missing == ["failing"]
    assert "no network <today>" in first.failures[0].error
    assert "no network &lt;today&gt;" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(InputError, match="started with seeds=1, not 2"):
        compare(task, entries, search=False, seeds=2, epochs=1, resume=tmp_path / "run")
    with pytest.raises(InputError, match=r"started with learning_rate=0\.004, not 0\.1"):
        compare(replace(task, learning_rate=0.1), entries, search=False, seeds=1, epochs=1, resume=tmp_path / "run")
    monkeypatch.setattr(trials, "train", None)  # the other is not trained again
    monkeypatch.setitem(entries, "failing", lambda task: nn.Sequential(nn.Flatten()))  # nothing to learn
    again = compare(task, entries, search=False, seeds=1, epochs=1, resume=tmp_path / "run")
    assert [row.name for row in again.rows] == ["linear", "failing"]
    assert again.failures == []


@pytest.mark.parametrize(
    ("network", "targets", "message"),
    [
        (
            lambda task: nn.Linear(2, 1),
            (96,),
            "outputs of shape (64, 1) and targets of shape (64,) do not match: make ",
        ),
        (lambda task: nn.Linear(3, 1), (96, 1), "mat1 and mat2 shapes cannot be multiplied"),
        (lambda task: nn.Linear(2, 2), (96, 1), "outputs of shape (64, 2) and targets of shape (64, 1)"),
        (lambda task: nn.LSTM(2, 1), (96, 1), "'tuple' object has no attribute 'shape'"),
    ],
    ids=["flat targets", "input width", "output width", "no tensor"],
)
def test_what_does_not_fit_is_found_before_anything_is_trained(network, targets, message, tmp_path, monkeypatch):
    data = TensorDataset(torch.randn(96, 2), torch.randn(targets))
    task = Task("numbers", data, data, goal=Regression(), epochs=1)
    monkeypatch.setattr(trials, "train", None)
    comparison = compare(task, {"net": network, "other": network}, seeds=1, out=tmp_path / "run")
    assert comparison.missing == ["net", "other"]
    assert [failure.what for failure in comparison.failures] == ["the first evaluation"] * 2
    assert message in comparison.failures[0].error


def test_a_task_that_no_network_of_the_toolkit_fits_is_listed_as_such(mine, capsys):
    assert main(["compare", "mine:words", "--list"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "no network of the toolkit fits inputs of shape (1, 5, 7) with the goal Classification: they "
    )
    assert "*" not in told
    assert main(["compare", "mine:words", "--models", "gd"]) == 2
    assert "no network of the toolkit fits" in capsys.readouterr().err
    assert main(["compare", "mine:make_task", "--list"]) == 0
    assert "* is not part of all: name it" in capsys.readouterr().out


def test_a_run_of_python_is_not_resumed_on_the_command_line_nor_the_other_way_round(task, mine, capsys):
    compare(task, {"linear": linear, "broken": lambda task: 3}, search=False, seeds=1, epochs=1, out="run")
    assert "resume with: compare(…, resume='run')" in capsys.readouterr().out
    assert main(["compare", "--resume", "run"]) == 2
    assert "the run was started from Python: call compare(…, resume=…) there" in capsys.readouterr().err
    models = "mine:linear,mine:broken"
    assert main(["compare", "mine:make_task", "--no-search", "--seeds", "1", "--models", models, "--out", "other"]) == 1
    with pytest.raises(InputError, match="the run was started by implicit compare"):
        compare(task, {"linear": linear}, resume="other")


@pytest.mark.parametrize(
    ("contestants", "options", "message"),
    [
        ({}, {}, "there is nothing to compare"),
        ({"net": nn.Linear(2, 2)}, {}, "net is a network: pass a function of the task that makes one"),
        ({"net": 3}, {}, "net is a int, not a function of the task"),
        ({"net": linear}, {"baseline": "nat"}, "unknown baseline 'nat'; did you mean 'net'?"),
        ({"net": linear}, {"match": "luck"}, "match='luck': choose from parameters, flops, shape"),
        ([linear], {}, "pass {name: function of the task that makes a network}"),
        ({3: linear}, {}, "pass {name: function of the task that makes a network}"),
        ({"net": linear}, {"seeds": 0}, "seeds=0 is not an integer of at least 1"),
        ({"net": linear}, {"seeds": "2"}, "seeds='2' is not an integer of at least 1"),
        ({"net": linear}, {"epochs": 0}, "epochs=0 is not an integer of at least 1"),
        ({"net": linear}, {"epochs": 1.5}, "epochs=1.5 is not an integer of at least 1"),
        ({"net": linear}, {"precision": "8"}, "precision='8': choose from 32"),
        ({"net": linear}, {"strategy": "fsdp"}, "needs several processes"),
        ({"net": linear}, {"device": "tpu"}, "tpu cannot be used"),
        ({"net": linear}, {"resume": "nowhere"}, "was not started"),
        ({"net": lambda task, size: linear(task)}, {}, "net has no size to start from"),
        ({"net": linear, "other": lambda task, size=8: nn.Linear(2, 1)}, {}, "other does not grow with its size"),
        ({"net": lambda task, size=8: 1 / 0, "other": two_layers}, {}, "the baseline net cannot be made"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words_and_leaves_nothing(contestants, options, message, task, mine):
    before = sorted(mine.rglob("*"))
    with pytest.raises(InputError, match=re.escape(message)):
        compare(task, contestants, **options)
    assert [path for path in sorted(mine.rglob("*")) if path.name != "runs"] == before


@pytest.mark.parametrize("whole", [True, False])
def test_the_same_weights_are_not_trained_twice(task, whole):
    shared = nn.Linear(2, 2)
    contestant = entered("net", lambda task: shared if whole else nn.Sequential(nn.Linear(2, 2), shared), task)
    contestant.build(1)
    with pytest.raises(TypeError, match="net returned the parameters of its last network again"):
        contestant.build(1)


def test_networks_may_share_what_they_do_not_train(task):
    frozen = nn.Linear(2, 2).requires_grad_(False)
    contestant = entered("net", lambda task: nn.Sequential(frozen, nn.Linear(2, 2)), task)
    assert contestant.build(1) is not contestant.build(1)


def test_a_row_that_would_be_a_batch_alone_is_left_out(mine):
    """Batch normalisation has no statistics of it."""
    x = torch.randn(9, 2)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    odd = Task("odd", data, data, goal=Classification(2), batch=4)
    found = compare(
        odd, {"net": lambda task: nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))}, seeds=1, epochs=3, search=False
    )
    assert not found.failures
    order = torch.Generator().manual_seed(0)
    shares = Shares(9, 4, ALONE, order)
    epochs = [list(shares) for _ in range(30)]
    assert {len(epoch) for epoch in epochs} == {len(shares)} == {8}
    assert {row for epoch in epochs for row in epoch} == set(range(9)), "another one in each epoch"


# --- a task ------------------------------------------------------------------------------------------------------

POINTS, LABELS = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
GOOD = TensorDataset(POINTS, LABELS)


class Endless(IterableDataset):
    def __iter__(self):
        yield from iter(GOOD)


class Sized(Endless):
    def __len__(self):
        return 4


@pytest.mark.parametrize(
    ("test", "options", "message"),
    [
        (TensorDataset(POINTS[:0], LABELS[:0]), {}, "its test part is empty"),
        (None, {}, "its test part is a NoneType, not a data set with a length and items"),
        (Endless(), {}, "its test part is a Endless, not a data set"),
        (TensorDataset(POINTS), {}, "its test part holds 1 tensors, not two, inputs and targets"),
        (
            TensorDataset(POINTS, LABELS.float()),
            {},
            "its test part has labels of torch.float32 in shape (4,), not",
        ),
        (TensorDataset(POINTS, torch.eye(2)[LABELS]), {}, "its test part has shares of the classes as labels"),
        (TensorDataset(POINTS, LABELS[:, None]), {}, "its test part has labels of torch.int64 in shape (4, 1)"),
        (
            TensorDataset(POINTS, LABELS + 1),
            {},
            "its test part has labels from 1 to 2, not from 0 to 1, as classes=2",
        ),
        (TensorDataset(POINTS / 0, LABELS), {}, "its test part holds NaN or Inf"),
        (Subset(TensorDataset(POINTS / 0, LABELS), [0, 3]), {}, "its test part holds NaN or Inf"),
        ([(point / 0, 0) for point in POINTS], {}, "its test part holds NaN or Inf"),
        ([(point, 2) for point in POINTS], {}, "its test part has labels from 2 to 2, not from 0 to 1"),
        ([{"input": point, "target": 0} for point in POINTS], {}, "its test part has items of a dict, not pairs"),
        ([(point, 0, 1.0) for point in POINTS], {}, "its test part holds 3 tensors, not two"),
        (Sized(), {}, "its test part is a Sized, not a data set with a length and items"),
        (GOOD, {"goal": "accuracy"}, "goal='accuracy' is not a Goal"),
        (GOOD, {"batch": 0}, "batch=0 is not at least 1"),
        (GOOD, {"learning_rate": -1.0}, "learning_rate=-1.0 is not a positive number"),
    ],
)
def test_a_task_that_cannot_be_trained_on_says_why(test, options, message):
    with pytest.raises(ValueError, match=re.escape(f"task toy: {message}")):
        Task("toy", GOOD, test, **{"goal": Classification(2), **options})


class Overflowing(nn.Linear):
    def forward(self, x):
        return super().forward(x).mul(1e3).exp()


@pytest.mark.usefixtures("latency_of_one_row")
def test_a_network_without_numbers_has_no_score_and_measuring_leaves_no_trace(task, tmp_path):
    def normalised(task):
        return nn.Sequential(nn.BatchNorm1d(2, momentum=0.5), nn.Linear(2, 2))

    networks = {"normalised": normalised, "overflows": lambda task: Overflowing(2, 2)}
    found = compare(task, networks, seeds=1, epochs=2, out=tmp_path / "run")
    assert not found.failures
    whole, overflown = found.rows
    assert math.isnan(overflown.runs[0].measurement.score)
    assert all(math.isnan(score) for score in overflown.search.scores.values())
    assert [row.name for row in found.ranked] == ["normalised", "overflows"]
    network, (points, labels) = whole.runs[0].network.eval(), task.test.tensors
    share = (network(points).argmax(1) == labels).double().mean().item()
    assert share == pytest.approx(whole.runs[0].measurement.score)
    assert network[0].num_batches_tracked == 2 * len(range(0, len(task.train), task.batch))


@pytest.mark.usefixtures("latency_of_one_row")
def test_a_masked_class_is_no_missing_score(task, tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            logits = self.inner(x)
            return torch.cat((logits, torch.full_like(logits[:, :1], -math.inf)), dim=1)

    three = replace(task, goal=Classification(3))
    found = compare(three, {"masked": lambda task: Masked()}, seeds=1, epochs=2, search=False, out=tmp_path / "run")
    run = found.rows[0].runs[0]
    assert 0 <= run.measurement.score <= 1
    assert run.training.curves[-1]["test_score"] == pytest.approx(run.measurement.score)


def test_files_have_short_names_that_differ():
    names = ["net", "x" * 300, "x" * 299 + "y", "a/b", "a-b"]
    files = [file_name(name) for name in names]
    assert files[0] == "net"
    assert len(set(files)) == len(names)
    assert max(map(len, files)) < 80


@pytest.mark.usefixtures("latency_of_one_row")
def test_tokens_have_no_margin_and_a_single_step_trains(tmp_path):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, tokens):
            return self.head(self.embedding(tokens).mean(1))

    data = TensorDataset(torch.randint(5, (30, 7)), torch.randint(2, (30,)))
    task = Task("tokens", data, data, goal=Classification(2), batch=32, learning_rate=0.1)
    made = []

    def tokens(task):
        made.append(Tokens())
        return made[-1]

    torch.manual_seed(0)
    before = []

    def kept(task):
        network = tokens(task)
        before.append(network.head.weight.detach().clone())
        return network

    found = compare(task, {"tokens": kept}, seeds=1, epochs=1, search=False, out=tmp_path / "run")
    assert not found.failures
    assert found.rows[0].runs[0].measurement.margin is None
    assert max((network.head.weight - old).abs().max().item() for network, old in zip(made, before)) > 0.05


def test_a_tasks_own_loss_and_optimiser_train(task, tmp_path):
    calls = []

    def loss(outputs, targets):
        return nn.functional.multi_margin_loss(outputs, targets)

    def optimizer(parameters, **options):
        calls.append(options)
        return torch.optim.Adagrad(parameters, **options)  # which has no momentum for the schedule to turn

    own = replace(task, loss=loss, optimizer=optimizer, learning_rate=0.3, weight_decay=0.0)
    comparison = compare(own, {"linear": linear}, search=False, seeds=1, epochs=8, out=tmp_path / "run")
    assert calls[0]["weight_decay"] == 0.0
    first, *_, last = comparison.rows[0].runs[0].training.curves
    assert last["train_loss"] < 0.5 * first["train_loss"]
    assert comparison.rows[0].mean("score") > 0.8


def test_the_toolkits_networks_fit_vectors_and_pictures(task):
    for shape in ((3, 12, 12), (1, 28, 28), (3, 40, 40)):
        pictures = TensorDataset(torch.zeros(4, *shape), torch.arange(4) % 3)
        rows = contestants_for(Task("pictures", pictures, pictures, goal=Classification(3)))
        assert rows["gd"].build(4)(torch.zeros(2, *shape)).shape == (2, 3)
    numbers = TensorDataset(torch.zeros(4, 5), torch.zeros(4, 3))
    rows = contestants_for(Task("numbers", numbers, numbers, goal=Regression()))
    assert rows["pgd-deq"].build(4)(torch.zeros(2, 5)).shape == (2, 3)
    words = TensorDataset(torch.zeros(4, 5, 7), torch.arange(4) % 3)
    words_task = Task("words", words, words, goal=Classification(3))
    assert contestants_for(words_task) == {}
    for models in ("all", "gd"):
        with pytest.raises(InputError, match=re.escape("no network of the toolkit fits inputs of shape (1, 5, 7)")):
            chosen(models, {}, words_task)
    flat = TensorDataset(torch.zeros(4, 5), torch.zeros(4))
    with pytest.raises(InputError, match=re.escape("its targets have shape (1,), not (batch, numbers)")):
        contestants_for(Task("flat", flat, flat, goal=Regression()))


def test_whom_all_are_compared_with(task):
    ours = contestants_for(task)
    entries = {"linear": entered("linear", linear, task), "gd": ours["gd"], "pgd-deq": ours["pgd-deq"]}
    assert {row.baseline for row in compared_with(None, entries, list(entries)).values()} == {"linear"}
    assert {row.baseline for row in compared_with("gd", entries, list(entries)).values()} == {"gd"}
    digits = make_task("digits")
    rows = known("digits", digits)
    assert compared_with(None, rows, ["pgd-deq"]) is rows  # each has its own


# --- on the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch:make"], "task nosuch:make: there is no module nosuch in"),
        (["mine.deep:make"], "task mine.deep:make: "),
        (
            ["faulty:make"],
            "faulty:make: ModuleNotFoundError: No module named 'nowhere_to_be_found' (faulty.py, line 1)",
        ),
        (["mine.py:make_task"], "task mine.py:make_task: name a module, not a file: mine:make_task"),
        (["./deep/mine.py:make"], "name a module, not a file: deep.mine:make"),
        (
            ["mine:make_task", "--models", "mine:linear", "--baseline", "linear"],
            "unknown baseline 'linear'; did you mean 'mine:linear'?",
        ),
        (["wrong:make"], "wrong cannot be imported: ZeroDivisionError: division by zero (wrong.py, line 1)"),
        (["mine:make_tusk"], "mine has no 'make_tusk'; did you mean 'make_task'?"),
        (["mine:value"], "task mine:value is a int: name a function that returns a Task"),
        (["mine:number"], "its function returned a int, not an experiments.Task"),
        (["mine:untested"], "cannot be made: ValueError: task mine: its test part is empty"),
        (["mine:make_task", "--data", "."], "task mine:make_task brings its own data"),
        (["mine:make_task", "--models", "nosuch:net"], "model nosuch:net: there is no module nosuch"),
        (["mine:make_task", "--models", "mine:value"], "mine:value is a int, not a function of the task"),
        (["mine:make_task", "--models", "mine:linera"], "mine has no 'linera'; did you mean 'linear'?"),
        (["mine:make_task", "--optimizer", "torch.optim:Adamm"], "torch.optim has no 'Adamm'; did you mean"),
        (["mine:make_task", "--models", "mine:broken,gd"], "the baseline mine:broken cannot be made: RuntimeError: no"),
    ],
)
def test_bad_input_of_ones_own_is_one_line(arguments, message, mine, capsys):
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_command_lines_task_network_and_settings(mine, capsys):
    models = "mine:make_network,gd,mine:linear,mine:nothing"
    arguments = ["compare", "mine:make_task", "--no-search", "--models", models, "--seeds", "1", "--baseline", "gd"]
    arguments += ["--batch", "16", "--learning-rate", "0.05", "--optimizer", "sgd", "--out", "a run"]
    assert main(arguments) == 1
    found = results(mine / "a run")
    assert list(found["models"]) == ["mine:make_network", "gd", "mine:linear"]
    assert found["models"]["mine:make_network"]["baseline"] == "gd"
    assert found["command"] == shlex.join(["implicit", *arguments])
    page = (mine / "a run" / "report.html").read_text()
    assert f"<code>implicit compare mine:make_task --no-search --models {models}" in page
    assert "TypeError: mine:nothing returned a NoneType, not a torch.nn.Module" in page
    text = MINE.replace("return None", "return nn.Linear(2, 2)")
    (mine / "mine.py").write_text(text + "\n")
    sys.modules.pop("mine")
    assert main(["compare", "--resume", "a run", "--batch", "8"]) == 2
    assert "the run was started with --batch 16: leave out 8" in capsys.readouterr().err
    assert main(["compare", "--resume", "a run"]) == 0
    again = results(mine / "a run")
    assert "mine:nothing" in again["models"]
    assert again["command"] == found["command"]  # the one that ran, not the one that went on
    assert again["models"]["gd"]["runs"] == found["models"]["gd"]["runs"]


def test_two_processes_train_a_users_network(mine):
    (mine / "program.py").write_text(
        "import mine\n"
        "from experiments import compare\n"
        "options = {'search': False, 'seeds': 1, 'epochs': 1, 'out': 'third'}\n"
        "comparison = compare(mine.make_task(), {'net': mine.make_network}, **options)\n"
        "print('rows', len(comparison.rows))\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [
        "compare",
        "mine:make_task",
        "--no-search",
        "--models",
        "mine:make_network",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--out",
    ]
    for launcher, arguments in (
        (["-m", "experiments"], [*command, "first", "--devices", "2"]),
        ([*torchrun, "program.py"], []),
    ):
        result = subprocess.run(
            [sys.executable, *launcher, *arguments],
            cwd=mine,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=200,
        )
        assert result.returncode == 0, result.stderr
        assert "on 2 processes (ddp) on cpu" in result.stdout
    assert sorted(re.findall("rows .", result.stdout)) == ["rows 0", "rows 1"]
    assert main([*command, "alone"]) == 0
    models = [results(mine / name)["models"].values() for name in ("first", "third", "alone")]
    scores = [model["runs"][0]["score"] for (model,) in models]
    assert scores[0] == pytest.approx(scores[2], abs=0.02)
    assert scores[1] == pytest.approx(scores[2], abs=0.02)
    assert results(mine / "first")["command"] == shlex.join(["implicit", *command, "first", "--devices", "2"])


def test_inputs_of_several_tensors_are_refused():
    class Dicts(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, place):
            return {"x": torch.ones(5)}, place % 2

    with pytest.raises(ValueError, match="its train part has inputs that are a dict each, not a tensor"):
        Task("dicts", Dicts(), Dicts(), goal=Classification(2))


def test_the_time_of_an_interrupted_search_is_counted(task, tmp_path, monkeypatch):
    calls = []

    def slow(*args, **options):
        calls.append(options["name"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        time.sleep(0.4)
        return Training([{"test_score": 0.5, "test_loss": 1.0}], [0.4])

    monkeypatch.setattr(trials, "train", slow)
    with pytest.raises(KeyboardInterrupt):
        compare(task, {"net": linear}, seeds=1, epochs=1, out=tmp_path / "run")
    comparison = compare(task, {"net": linear}, seeds=1, epochs=1, resume=tmp_path / "run")
    assert comparison.settings["seconds"] >= 0.4 * (len(calls) - 1)


def test_targets_of_one_dim_suit_a_network_of_ones_own_on_the_command_line(mine, capsys):
    (mine / "flat.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.utils.data import TensorDataset\n"
        "from experiments import Regression, Task\n\n\n"
        "def task():\n    x = torch.randn(96, 5)\n    data = TensorDataset(x, x[:, 0])\n"
        "    return Task('flat', data, data, goal=Regression(), epochs=1)\n\n\n"
        "class Net(nn.Linear):\n    def forward(self, x):\n        return super().forward(x)[:, 0]\n\n\n"
        "def net(task):\n    return Net(5, 1)\n"
    )
    options = ["--seeds", "1", "--no-search", "--out", "run"]
    assert main(["compare", "flat:task", "--models", "flat:net", *options]) == 0
    assert main(["compare", "flat:task", "--models", "gd", *options[:-1], "other"]) == 2
    assert "its targets have shape (1,), not (batch, numbers)" in capsys.readouterr().err
    sys.modules.pop("flat", None)
