"""The verdict, the marks and the order of a comparison whose scores are known."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text
from torch import nn
from torch.utils.data import TensorDataset

from experiments import Classification, Comparison, Contestant, Regression, Task
from experiments.measuring.measure import Measurement
from experiments.reporting.comparison import Row, Run
from experiments.reporting.figures.labels import name_points
from experiments.reporting.figures.scores import cost, differences
from experiments.reporting.figures.training import training_curves
from experiments.reporting.table import MARKS, columns
from experiments.training.search import Search
from experiments.training.train import Training

DATA = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))


def row(name, scores, baseline="gd", seconds=1.0, evaluations=0.0, saved=2**20, epochs=2, search=None):
    runs = []
    for seed, score in enumerate(scores):
        numbers = {"margin": None, "flops": 1e6 * seconds, "converged": 1.0, "latency": {}, "prefix_scores": []}
        numbers |= {"depth_scores": {}}
        numbers |= {"forward_evaluations": evaluations, "backward_evaluations": evaluations}
        numbers |= {"saved_bytes": saved, "solutions": []}
        curves = [{"test_score": score, "train_loss": 1.0 / (1 + epoch)} for epoch in range(epochs)]
        runs.append(Run(seed, Training(curves, [seconds] * epochs), Measurement(score=score, **numbers), nn.Identity()))
    contestant = Contestant("explicit", name, lambda size: nn.Identity(), baseline=baseline)
    return Row(name, contestant, 100, 8, runs, 1e-2, search)


def compared(*rows, goal=None, epochs=2):
    goal = Classification(2) if goal is None else goal
    data = DATA if isinstance(goal, Classification) else TensorDataset(torch.zeros(4, 2), torch.zeros(4, 1))
    settings = {"epochs": epochs}
    return Comparison(Task("toy", data, data, goal=goal), list(rows), settings)


GD = row("gd", [0.80, 0.81, 0.79, 0.80, 0.80])
BETTER = row("better", [0.85, 0.86, 0.84, 0.85, 0.86], seconds=3.0, evaluations=12.4, saved=2**19)
ALIKE = row("alike", [0.79, 0.83, 0.78, 0.81, 0.80], seconds=0.5)
WORSE = row("worse", [0.70, 0.71, 0.69, 0.70, 0.71])


def test_the_verdict_says_who_differs_at_what_cost():
    text = compared(GD, BETTER, ALIKE, WORSE).verdict()
    assert text == (
        "Better than gd (80.00 %) by more than the 95 % interval: better (+5.20 [+4.64, +5.76]). Worse than gd "
        "(80.00 %) by more than the 95 % interval: worse (-9.80 [-10.36, -9.24]). Not distinguishable from gd: alike. "
        "Training on this machine, relative to gd: better 3 × the time, 0.5 × the memory, 12 evaluations of its cells "
        "per row."
    )


def test_who_does_not_differ_is_not_said_to():
    text = compared(GD, ALIKE).verdict()
    assert text.startswith("alike does not differ from gd (80.00 %) by more than the 95 % interval. ")
    assert "etter than" not in text
    assert "alike 0.5 × the time" in text


def test_one_seed_says_nothing_and_no_difference_is_printed():
    comparison = compared(row("gd", [0.8]), row("other", [0.9]))
    assert comparison.verdict().startswith("One seed says nothing about differences")
    _, shown = columns(comparison)["– gd"]
    assert [shown(each) for each in comparison.rows] == ["baseline", "–"]
    assert differences(comparison) is None
    assert not any(mark.strip() in comparison.table() for mark in MARKS.values())


def test_a_rate_at_the_edge_of_its_search_is_said():
    edge, inside = Search({1e-3: 0.7, 3e-3: 0.75, 9e-3: 0.8}, 9e-3), Search({1e-3: 0.7, 3e-3: 0.8, 9e-3: 0.7}, 3e-3)
    some = compared(row("gd", [0.8, 0.81], search=edge), row("other", [0.8, 0.82], search=inside)).verdict()
    assert "The best learning rate tried for gd was the lowest or highest of the search: one beyond it may do b" in some
    every = compared(row("gd", [0.8, 0.81], search=edge), row("other", [0.8, 0.82], search=edge)).verdict()
    assert "The best learning rate tried was the lowest or highest" in every
    assert "learning rate" not in compared(row("gd", [0.8, 0.81], search=inside)).verdict()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(2.5e-5, "0.025"), (1.234e-3, "1.23"), (0.3694, "369"), (0.9997, "1,000"), (12.0, "12,000"), (2.5e-8, "2.5e-05")],
)
def test_latencies_have_three_digits(seconds, shown):
    timed = row("gd", [0.8, 0.81])
    for run in timed.runs:
        run.measurement.latency[1] = seconds
    assert columns(compared(timed))["ms at 1"][1](timed).rstrip("0") == shown.rstrip("0")


def test_neither_of_two_differs_and_readings_are_explained():
    comparison = compared(GD, ALIKE, row("other", [0.8, 0.82, 0.79, 0.8, 0.8]))
    assert "Neither of the 2 others differs from gd" in comparison.verdict()
    assert columns(comparison)["reading"][0] == "explicit: layers one after the other"


def test_few_seeds_are_said_to_be_few_and_many_intervals_to_err():
    few = compared(*(row(name, [0.8, 0.81]) for name in ("gd", "other")))
    assert "2 seeds decide large differences only: 5 or more" in few.verdict()
    many = compared(GD, *(row(f"net {number}", [0.8, 0.82, 0.79, 0.8, 0.8]) for number in range(20)))
    assert "Of 20 such intervals, about 1 will exclude 0 by chance" in many.verdict()
    assert "None of the 20 others differs from gd" in many.verdict()


def test_lower_is_better_where_the_goal_says_so():
    comparison = compared(row("gd", [2.0, 2.1, 2.0]), row("other", [1.0, 1.1, 1.01]), goal=Regression())
    assert "Better than gd (2.03e+00) by more than the 95 % interval: other" in comparison.verdict()
    assert [each.name for each in comparison.ranked] == ["other", "gd"]
    assert comparison.judged(comparison.rows[1]) == "better"


def test_a_score_that_is_not_finite_is_neither_better_nor_undecided():
    comparison = compared(GD, row("diverged", [math.nan] * 5), BETTER)
    assert "Without a finite score: diverged." in comparison.verdict()
    assert [each.name for each in comparison.ranked] == ["better", "gd", "diverged"]
    assert comparison.judged(comparison.rows[1]) == "unknown"
    assert cost(comparison) is not None


def test_several_baselines_have_a_verdict_each_and_a_missing_one_is_said():
    comparison = compared(
        GD, BETTER, row("wide", [0.9] * 5, baseline="wide"), row("w", [0.7, 0.7, 0.7, 0.7, 0.71], baseline="wide")
    )
    assert "Better than gd" in comparison.verdict()
    assert (
        "Worse than wide (90.00 %) by more than the 95 % interval: w (-19.80 [-20.36, -19.24])" in comparison.verdict()
    )
    assert "The baseline gd has no scores" in compared(BETTER).verdict()
    assert Comparison(GD, [], {}).verdict() == "Nothing was measured."


def test_the_table_is_sorted_and_marks_what_is_decided():
    lines = compared(WORSE, ALIKE, GD, BETTER).table().splitlines()
    names = [
        line.split()[0] for line in lines if line.split() and line.split()[0] in ("worse", "alike", "gd", "better")
    ]
    assert names == ["better", "alike", "gd", "worse"]
    marks = {line.split()[0]: line for line in lines if line.strip()}
    assert "▲ +5.20" in marks["better"]
    assert "▼ -9.80" in marks["worse"]
    assert "▲" not in marks["alike"] + marks["gd"]
    assert "baseline" in marks["gd"]


def test_figures_that_would_say_nothing_are_left_out():
    assert training_curves(compared(row("gd", [0.8], epochs=1), epochs=1)) is None
    assert cost(compared(GD)) is None
    equal = compared(GD, row("other", [0.7, 0.71, 0.7, 0.7, 0.7]))
    assert cost(equal) is None  # both cost the same
    figure = cost(compared(GD, BETTER))
    assert len(figure.axes) == 3
    assert [len(figure.axes) for figure in [cost(compared(GD, row("other", [0.7] * 5, saved=2**21)))]] == [1]
    plt.close("all")


def test_all_curves_can_be_picked_and_the_best_and_the_baseline_are_shown():
    comparison = compared(GD, BETTER, ALIKE, WORSE, row("last", [0.5] * 5), row("none", [0.4] * 5))
    lines = training_curves(comparison).axes[0].lines
    assert len({line.get_gid() for line in lines}) == 6
    assert {line.get_label() for line in lines if line.get_visible()} == {"better", "alike", "gd"}
    plt.close("all")


@pytest.mark.parametrize("count", [3, 12, 30])
def test_labels_overlap_neither_each_other_nor_points(count):
    figure, ax = plt.subplots(figsize=(5, 4))
    generator = torch.Generator().manual_seed(count)
    spots = torch.rand(count, 2, generator=generator).mul(0.6).add(0.2).tolist()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.scatter(*zip(*spots), s=25)
    points = {f"network-{number}": tuple(spot) for number, spot in enumerate(spots)}
    name_points(ax, points, [])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == count or count == 30
    assert len(boxes) >= 10 or count < 10
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert not any(box.contains(*ax.transData.transform(spot)) for spot in spots)
        assert ax.get_window_extent().contains(box.x0, box.y0)
    plt.close(figure)


def test_the_verdict_says_where_no_learning_rate_was_searched_for():
    found = compared(row("gd", [0.5, 0.6]), row("pgd", [0.9, 0.95]))
    assert "searched" not in found.verdict()
    found.settings["search"] = False
    assert "Learning rates were not searched for" in found.verdict()
