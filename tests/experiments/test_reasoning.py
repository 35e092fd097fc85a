"""What a task of puzzles keeps apart, and what its networks are compared with."""

import copy
import itertools

import pytest
import torch
from torch.utils.data import TensorDataset

from experiments import ExactMatch, Task, contestants_for
from experiments.contestants.reasoning import SEGMENTS, Segmented
from experiments.contestants.terms import flops, parameters
from experiments.failures import Failures
from experiments.measuring.measure import measure
from experiments.tasks.make import make_task

GRIDS = {"sudoku": (208, 24, 56), "sudoku6": (5888, 768, 1536)}


@pytest.mark.parametrize("name", GRIDS)
def test_no_grid_is_in_two_parts(name):
    task = make_task(name)
    parts = [{tuple(row) for row in data.tensors[1].tolist()} for data in (task.train, task.validation, task.test)]
    assert all(not one & other for one, other in itertools.combinations(parts, 2))
    assert tuple(map(len, parts)) == GRIDS[name]


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        (torch.zeros(4, dtype=torch.int64), r"\(rows, answers\)"),
        (torch.zeros(4, 2), "torch.float32"),
        (torch.full((4, 2), 3), "from 3 to 3, not from 0 to 2"),
    ],
)
def test_targets_that_are_no_labels_are_refused(targets, why):
    data = TensorDataset(torch.zeros(4, 2, 3), targets)
    with pytest.raises(ValueError, match=why):
        Task("cells", data, data, goal=ExactMatch(3))


@pytest.fixture
def puzzles():
    """Of nine cells and three digits."""
    clues = torch.eye(4)[torch.randint(4, (8, 9), generator=torch.Generator().manual_seed(0))]
    data = TensorDataset(clues, torch.zeros(8, 9, dtype=torch.int64))
    return Task("latin", data, data, goal=ExactMatch(3), measured=8)


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")  # untrained equilibria
def test_the_toolkits_networks_take_puzzles_of_ones_own(puzzles):
    x, y = puzzles.sample(5)
    contestants = contestants_for(puzzles)
    assert {"looped", "deq", "stack"} <= contestants.keys()
    for name, contestant in contestants.items():
        output = contestant.build(16)(x)
        assert output.shape == (5, 3, 9), name
        assert puzzles.goal.loss(output, y).isfinite()


def test_the_explicit_ones_have_as_many_parameters_or_do_as_much_work(puzzles):
    contestants, (x, _) = contestants_for(puzzles), puzzles.sample(5)
    looped, stack, deep = (contestants[name].build(64) for name in ("looped", "stack", "stack-deep"))
    assert parameters(stack) == parameters(looped)
    once = 8 * 9 * 2 * 4 * 32  # what each step of the loop embeds anew, and a stack once
    assert 0 <= flops(looped, x) - flops(deep, x) <= once


def test_measured_flops_are_those_of_the_steps_alone(puzzles):
    network, (x, _) = contestants_for(puzzles)["looped"].build(16), puzzles.sample(8)
    network.layer.steps = 1
    once = flops(network, x)
    network.layer.steps = 5
    measured = measure(network, puzzles, "cpu", Failures())
    head = 9 * 2 * 32 * 3
    assert measured.flops == flops(network, x) == 5 * (once - head) + head


def test_a_network_can_be_copied_between_batches_and_after_one_that_broke_off(puzzles):
    network, (x, _) = contestants_for(puzzles)["looped-segments"].build(16), puzzles.sample(5)
    assert isinstance(network, Segmented)
    first = [network(x, segment=segment) for segment in range(SEGMENTS)]
    twin = copy.deepcopy(network)
    network(x, segment=0)  # the next segment never comes
    for one, other, third in zip(
        first,
        [twin(x, segment=segment) for segment in range(SEGMENTS)],
        [network(x, segment=segment) for segment in range(SEGMENTS)],
        strict=True,
    ):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
