"""The learning rate of each network, chosen on data that are held back."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from experiments import Classification, Contestant, InputError, Regression, Task, compare
from experiments.running import trials
from experiments.tasks.make import make_task
from experiments.training.search import held_back, search

ACCURACY = Classification(2)


def tried(scores, goal=ACCURACY, first=1.0):
    """What the search does where a rate's score is a function of its logarithm to base 3."""
    order = []

    def attempt(rate):
        order.append(round(math.log(rate, 3)))
        score = scores(order[-1])
        return score if isinstance(score, tuple) else (score, 0.0)

    found = search(first, goal, attempt)
    return order, round(math.log(found.chosen, 3)), found


def test_a_best_rate_in_the_middle_ends_the_search():
    assert tried(lambda power: -(power**2))[:2] == ([-1, 0, 1], 0)


@pytest.mark.parametrize(("peak", "order"), [(2, [-1, 0, 1, 2, 3]), (-2, [-1, 0, 1, -2, -3]), (1, [-1, 0, 1, 2])])
def test_it_goes_on_where_the_best_is_the_last_one(peak, order):
    found = tried(lambda power: -((power - peak) ** 2))
    assert found[:2] == (order, peak)
    assert found[2].bracketed
    assert list(found[2].scores) == sorted(found[2].scores)


def test_it_ends_after_five_rates_and_says_that_the_best_is_the_last():
    order, chosen, found = tried(lambda power: power)
    assert (order, chosen, found.bracketed) == ([-1, 0, 1, 2, 3], 3, False)


def test_lower_is_better_for_errors():
    assert tried(lambda power: (power + 2) ** 2, Regression())[:2] == ([-1, 0, 1, -2, -3], -2)


def test_equal_scores_are_told_apart_by_the_loss():
    assert tried(lambda power: (0.5, -power if power < 2 else 9.0))[:2] == ([-1, 0, 1, 2], 1)


def test_rates_that_fail_or_diverge_are_not_chosen():
    order, chosen, found = tried(lambda power: math.nan if power >= 0 else 0.1)
    assert chosen == -1
    assert order == [-1, 0, 1, -2]  # as good as its neighbour, and no better
    assert sum(map(math.isnan, found.scores.values())) == 2
    assert tried(lambda power: math.nan)[:2] == ([-1, 0, 1], 0)  # the runs will say what is wrong
    assert tried(lambda power: (0.5, math.nan if power else 1.0))[1] == 0


def data(rows):
    return TensorDataset(torch.arange(rows)[:, None].float(), torch.arange(rows) % 2)


@pytest.mark.parametrize(("rows", "batch", "left"), [(100, 64, 64), (101, 16, 80), (10, 64, 8), (2, 1, 1), (6, 5, 5)])
def test_a_fifth_is_held_back_and_whole_batches_are_left(rows, batch, left):
    task = Task("toy", data(rows), data(3), goal=ACCURACY, batch=batch)
    if rows < 5:
        with pytest.raises(InputError, match="of 2 rows none can be held back"):
            held_back(task)
        return
    found = held_back(task)
    parts = [{int(x) for x, _ in part} for part in (found.train, found.test)]
    assert len(parts[0]) == left
    assert parts[0] | parts[1] == set(range(rows))
    assert not parts[0] & parts[1]
    again = held_back(task)
    assert [int(x) for x, _ in again.test] == [int(x) for x, _ in found.test]


@pytest.mark.parametrize("name", ["rings", "parity"])
def test_tasks_whose_rows_stand_in_it_several_times_have_a_validation_part(name):
    task = make_task(name)
    assert held_back(task).test is task.validation
    assert held_back(task).train is task.train


def toy(**changes):
    x = torch.randn(96, 2, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    points = TensorDataset(x, (x @ torch.tensor([[1.0], [2.0]], device="cpu")))
    settings = {"goal": Regression(), "epochs": 2, "batch": 16, "learning_rate": 1e-2, "weight_decay": 0.0, **changes}
    return Task("toy", points, points, **settings)


def linear(task):
    return nn.Linear(2, 1)


class Slow(nn.Module):
    """Needs a larger rate than the task's: its output is a tenth of a linear map's."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(2, 1)

    def forward(self, x):
        return self.map(x) / 10


def test_each_network_is_trained_at_the_rate_that_did_best(tmp_path):
    own = Contestant("own", "at a rate of its own", lambda size: nn.Linear(2, 1), fixed=True, learning_rate=0.02)
    networks = {"linear": linear, "slow": lambda task: Slow(), "own": own}
    comparison = compare(toy(), networks, seeds=1, out=tmp_path / "run")
    assert not comparison.failures
    linear_row, slow_row, own_row = comparison.rows
    assert slow_row.learning_rate >= linear_row.learning_rate > 0.01
    assert own_row.search is None
    assert own_row.learning_rate == 0.02
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    recorded = results["models"]["slow"]
    assert recorded["learning_rate"] == pytest.approx(slow_row.learning_rate)
    assert {float(rate) for rate in recorded["searched"]} == set(slow_row.search.scores)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Each network's learning rate is the best of" in page
    assert f"learning rate {slow_row.learning_rate:.2g}, tried: " in page
    assert "learning rate 0.02 of its own" in page
    assert not list((tmp_path / "run").glob("checkpoints/*-at-*"))


def test_without_a_search_all_have_the_task_s_rate(tmp_path):
    comparison = compare(toy(), {"linear": linear}, seeds=1, search=False, out=tmp_path / "run")
    assert comparison.rows[0].search is None
    assert comparison.rows[0].learning_rate == 0.01
    assert "Learning rates were not searched for." in (tmp_path / "run" / "report.html").read_text()


def test_the_search_never_sees_the_test_part(tmp_path, monkeypatch):
    task = toy()
    seen = []
    train = trials.train

    def watched(network, given, **rest):
        seen.append(given.test is task.test)
        return train(network, given, **rest)

    monkeypatch.setattr(trials, "train", watched)
    found = compare(task, {"linear": linear}, seeds=1, epochs=1, out=tmp_path / "run")
    assert seen == [False] * len(found.rows[0].search.scores) + [True]


def test_a_network_that_fails_at_one_rate_is_trained_at_another(tmp_path, capsys):
    class Fragile(Slow):
        def forward(self, x):
            if float(self.map.weight.detach().abs().max()) > 3:
                raise RuntimeError("out of bounds")
            return self.map(x)

    task = toy(learning_rate=0.5)
    comparison = compare(task, {"fragile": lambda task: Fragile()}, seeds=1, epochs=2, out=tmp_path / "run")
    row = comparison.rows[0]
    assert any(map(math.isnan, row.search.scores.values()))
    assert math.isfinite(row.mean("score"))
    assert not comparison.failures
    assert "the training of fragile at 1.5 failed (RuntimeError: out of bounds)" in capsys.readouterr().out


def test_a_run_that_goes_on_does_not_search_again(tmp_path, monkeypatch):
    def stopping(task):
        if torch.initial_seed() == 1:
            raise KeyboardInterrupt
        return nn.Linear(2, 1)

    with pytest.raises(KeyboardInterrupt):
        compare(toy(), {"linear": stopping}, seeds=2, out=tmp_path / "run")

    def never(*args):
        raise AssertionError("searched again")

    monkeypatch.setattr(trials, "search", never)
    whole = compare(toy(), {"linear": linear}, seeds=2, resume=tmp_path / "run")
    assert len(whole.rows[0].runs) == 2
    assert whole.rows[0].search is not None


def test_the_validation_part_is_checked_as_the_others_are():
    with pytest.raises(ValueError, match="its validation part is empty"):
        replace(toy(), validation=TensorDataset(torch.zeros(0, 2), torch.zeros(0, 1)))


def test_all_networks_are_trained_from_one_seed_before_the_next(tmp_path, monkeypatch):
    order = []
    train = trials.train

    def watched(network, given, *, name, seed, **rest):
        order.append((seed, name))
        return train(network, given, name=name, seed=seed, **rest)

    monkeypatch.setattr(trials, "train", watched)
    networks = {"one": linear, "two": linear}
    compare(toy(), networks, seeds=2, epochs=1, search=False, out=tmp_path / "run")
    assert order == [(0, "one"), (0, "two"), (1, "one"), (1, "two")]
