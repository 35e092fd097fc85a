"""Contestants whose equilibria start where a network proposes, and steps with a loss of the network's own."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from experiments import Classification, Regression, Step, Task, compare, contestants_for
from experiments.contestants.own import known
from experiments.contestants.started import Started
from experiments.tasks.make import fewer, make_task
from models import LearnedStart, OptDEQ


@pytest.mark.parametrize("name", ["digits", "rings", "parity", "telgarsky"])
def test_the_outputs_are_those_of_the_layers_and_the_loss_that_of_the_starts(name):
    task = make_task(name)
    network = known(name, task)["pgd-deq-start"].build(8)
    x, _ = task.sample(4)
    outputs, own = network(x, own_loss=True)
    torch.testing.assert_close(outputs, network(x))
    before, deq, *_ = network.layers
    assert isinstance(deq, OptDEQ)
    lifted = before(x)
    torch.testing.assert_close(own, deq.initial.loss(deq(lifted), lifted))
    own.backward()
    moved = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert moved == {f"layers.1.initial.{name}" for name, _ in deq.initial.named_parameters()}


def test_pictures_in_several_stages_have_a_start_in_each():
    data = TensorDataset(torch.randn(8, 1, 20, 20), torch.arange(8) % 2)
    rows = contestants_for(Task("pictures", data, data, goal=Classification(2)))
    network = rows["pgd-deq-start"].build(8)
    starts = [layer for layer in network.modules() if isinstance(layer, LearnedStart)]
    assert len(starts) == 2
    _, own = network(data.tensors[0], own_loss=True)
    own.backward()
    assert all(parameter.grad is not None for start in starts for parameter in start.parameters())


class OwnLoss(nn.Module):
    """Two weights: one trained by the task, one by a loss of the network's own."""

    def __init__(self):
        super().__init__()
        self.task, self.own = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x, own_loss=False):
        y = x * self.task
        return (y, (self.own - 1).square().sum()) if own_loss else y

    def training_steps(self, epoch, epochs):
        return [Step({"own_loss": True}, own_loss=True)]


def test_a_loss_of_the_networks_own_is_added_and_not_among_the_tasks(tmp_path):
    x = torch.ones(64, 1)
    data = TensorDataset(x, 0.5 * x)
    task = Task("half", data, data, goal=Regression(), batch=8, epochs=30, learning_rate=0.1, weight_decay=0.0)
    found = compare(task, {"own": lambda task: OwnLoss()}, seeds=1, search=False, out=tmp_path / "run")
    assert not found.failures
    (run,) = found.rows[0].runs
    assert abs(run.network.task.item() - 0.5) < 0.01
    assert abs(run.network.own.item() - 1) < 0.05
    assert run.training.curves[0]["train_loss"] <= 0.25  # of the task alone: that of the other begins at 1


@pytest.mark.usefixtures("latency_of_one_row")
def test_the_trained_start_is_nearer_than_zeros(tmp_path):
    task = fewer(make_task("digits"), 512)
    networks = {name: known("digits", task)[name] for name in ("pgd-deq", "pgd-deq-start")}
    found = compare(task, networks, baseline="pgd-deq", seeds=1, epochs=4, search=False, out=tmp_path / "run")
    assert not found.failures
    plain, started = found.rows
    assert abs(started.parameters / plain.parameters - 1) < 0.06
    before, deq, *_ = started.runs[0].network.layers
    with torch.no_grad():
        x = before(task.sample(64)[0])
    proposed, zeros = deq.solve(x).trace[0], deq.solve(x, z0=torch.zeros_like(x)).trace[0]
    assert proposed.median() < 0.5 * zeros.median()


def test_text_starts_without_a_view_of_what_comes():
    task = make_task("text")
    network = known("text", task)["deq-start"].build(16).eval()
    assert isinstance(network, Started)
    start, embedding = network.layers[1].initial, network.layers[0]
    inputs, _ = task.sample(2)
    changed = inputs.clone()
    changed[:, 9:] = 1
    torch.testing.assert_close(start(embedding(changed))[:, :9], start(embedding(inputs))[:, :9])
