"""Para-Formers trained progressively, and what their branches add."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from experiments.contestants.progressive import Progressive
from experiments.contestants.terms import flops
from experiments.measuring.measure import Branched, prefix_scores, score
from experiments.reporting.figures.branches import kept_branches
from experiments.tasks.goals import Classification
from models import ParaFormer


def para_former(branches=3):
    torch.manual_seed(0)
    return ParaFormer(
        image_size=4, patch_size=2, channels=1, classes=3, branches=branches, depth=1, width=6, heads=2, hidden=8
    )


def task(rows=40):
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(rows, 1, 4, 4), torch.randint(3, (rows,)))
    return SimpleNamespace(test=data, workers=0, goal=Classification(classes=3))


def test_progressive_passes_take_the_prefixes_in_turn_and_then_all_branches():
    model, x = Progressive(para_former(), rounds=2), torch.randn(5, 1, 4, 4)
    with torch.no_grad():
        expected = [model.network(x, branches=count) for count in (1, 2, 3, 1, 2, 3, 3, 3)]
        torch.testing.assert_close(model(x), expected[2])  # no training pass: not counted
    for answer in expected:
        torch.testing.assert_close(model(x), answer)
    twin = Progressive(para_former(), rounds=2)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(x), expected[2])  # goes on where it was
    torch.testing.assert_close(Progressive(para_former(), rounds=2).eval()(x), expected[2])


@pytest.mark.parametrize("wrap", [lambda network: network, lambda network: Progressive(network, rounds=1)])
def test_prefix_scores_are_those_of_networks_that_keep_the_first_branches(wrap):
    network = wrap(para_former(branches=4)).eval()
    assert isinstance(network, Branched)
    assert not isinstance(nn.Linear(2, 2), Branched)
    inner = getattr(network, "network", network)
    expected = [score(inner.kept(range(count)), task(), "cpu") for count in (1, 2, 3, 4)]
    scores = prefix_scores(network, task(), "cpu")
    assert scores == pytest.approx(expected)
    assert scores[-1] == pytest.approx(score(network, task(), "cpu"))


def test_flops_are_counted_branch_by_branch():
    x = torch.randn(5, 1, 4, 4)
    one, three = (flops(para_former(branches).eval(), x) for branches in (1, 3))
    embedding_and_head = 4 * 2 * 4 * 6 + 2 * 6 * 3
    assert 0 < three - one == 2 * (one - embedding_and_head)


def test_the_figure_shows_mean_and_range_of_each_para_former_and_nothing_without_one():
    def row(name, *scores):
        runs = [SimpleNamespace(measurement=SimpleNamespace(prefix_scores=values)) for values in scores]
        return SimpleNamespace(name=name, runs=runs)

    rows = [row("gd", []), row("paraformer", [0.5, 0.75], [0.6, 0.85])]
    figure = kept_branches(SimpleNamespace(rows=rows, task=task()))
    (ax,) = figure.axes
    (line,) = ax.lines
    assert line.get_label() == "paraformer"
    assert line.get_xdata().tolist() == [1, 2]
    assert line.get_ydata().tolist() == pytest.approx([55, 80])
    assert "branches" in ax.get_xlabel()
    assert "accuracy (%)" in ax.get_ylabel()
    assert kept_branches(SimpleNamespace(rows=rows[:1], task=task())) is None
