"""Para-Formers trained progressively, and what their branches add."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.contestants.progressive import Progressive
from experiments.contestants.terms import flops
from experiments.measuring.measure import Branched, prefix_scores, score
from experiments.reporting.figures.branches import kept_branches
from experiments.tasks.goals import Classification
from experiments.tasks.task import Task
from experiments.training.shares import Shares
from experiments.training.team import ALONE
from experiments.training.train import train
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


def test_every_other_pass_but_the_last_trains_the_sums_of_the_first_branches():
    model = Progressive(para_former())
    passes = [model.training_steps(epoch, 4) for epoch in range(4)]
    assert [[step.arguments.get("branches") for step in steps] for steps in passes] == 2 * [[1, 2, 3], [None]]
    assert [{step.largest_norm for step in steps} for steps in passes] == 2 * [{1.0}, {None}]
    assert [len(model.training_steps(epoch, 3)) for epoch in range(3)] == [1, 3, 1]


def trained_as_published(network, task, epochs, seed):
    """The published loop, by hand: AdamW and the one-cycle schedule of a comparison, a step of it for each batch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=task.learning_rate, weight_decay=task.weight_decay)
    steps = epochs * -(-len(task.train) // task.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.learning_rate, total_steps=steps)
    order = torch.Generator("cpu").manual_seed(seed)
    shuffled = Shares(len(task.train), task.batch, ALONE, order)
    batches = DataLoader(task.train, task.batch, sampler=shuffled, generator=order)
    for epoch in range(epochs):
        for x, y in batches:
            counts = [None] if (epochs - epoch) % 2 else [1, 2, 3]
            for count in counts:
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x, branches=count), y).backward()
                if count is not None:
                    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
            schedule.step()


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_progressive_training_is_the_published_loop(epochs, tmp_path):
    given = task()
    toy = Task("toy", given.test, given.test, goal=given.goal, batch=16, learning_rate=0.05, epochs=epochs)
    expected = para_former()
    trained_as_published(expected, toy, epochs, seed=3)
    network = Progressive(para_former())
    train(network, toy, epochs=epochs, seed=3, device="cpu", folder=tmp_path, name="toy")
    for name, value in network.network.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda network: network, lambda network: Progressive(network)])
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
