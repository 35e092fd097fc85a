"""Sudoku: every puzzle has one solution, no grid is in both parts, and networks are the loops they are said to be."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from experiments import compare, contestants_for
from experiments.contestants.reasoning import SEGMENT, SEGMENTS, STEPS, thinkers
from experiments.errors import InputError
from experiments.measuring.measure import DEPTHS, Repeating, depth_scores, score
from experiments.tasks.goals import ExactMatch
from experiments.tasks.make import make_task
from experiments.tasks.sudoku import dug, is_unique, moved, solutions

SIDES = {"sudoku": 4, "sudoku6": 6}


@pytest.fixture(scope="module", params=SIDES)
def task(request):
    return make_task(request.param)


@pytest.fixture(scope="module")
def few():
    whole = make_task("sudoku")
    train, test = (Subset(data, range(96)) for data in (whole.train, whole.test))
    return replace(whole, train=train, test=test, measured=32)


def valid(grid):
    """By the rules as one reads them: each digit once in each row, column and box of two rows."""
    side = len(grid)
    whole, width = set(range(1, side + 1)), side // 2
    boxes = [grid[top : top + 2, left : left + width] for top in range(0, side, 2) for left in range(0, side, width)]
    return all(set(part.ravel().tolist()) == whole for part in (*grid, *grid.T, *boxes))


def test_there_are_288_grids_of_four():
    grids = [np.array(cells).reshape(4, 4) for cells in solutions([0] * 16, 4)]
    assert len({grid.tobytes() for grid in grids}) == len(grids) == 288
    assert all(map(valid, grids))
    by_rules = 0
    rows = list(itertools.permutations(range(1, 5)))
    for four in itertools.product(rows, repeat=4):
        if len(set(zip(four[0][:2], four[1][:2]))) and len({*four[0][:2], *four[1][:2]}) == 4 and valid(np.array(four)):
            by_rules += 1
    assert by_rules == 288


@pytest.mark.parametrize("side", [4, 6])
def test_what_is_dug_has_one_solution_and_one_clue_less_may_not(side):
    draw = np.random.default_rng(3)
    whole = next(solutions([0] * side**2, side))
    puzzle = dug(whole, side, {4: 1, 6: 10}[side], draw)
    assert list(solutions(puzzle.copy(), side)) == [whole]
    for cell, digit in enumerate(puzzle if side == 4 else []):  # as few clues as there can be
        if digit:
            assert not is_unique([0 if place == cell else other for place, other in enumerate(puzzle)], side)
    assert not is_unique([1, 1, *[0] * (side**2 - 2)], side)  # which has none


@pytest.mark.parametrize("side", [4, 6])
def test_a_symmetry_keeps_the_rules_and_the_clues(side):
    draw = np.random.default_rng(0)
    whole = np.array(next(solutions([0] * side**2, side))).reshape(side, side)
    puzzle = np.where(draw.random((side, side)) < 0.5, whole, 0)
    for _ in range(20):
        few, found = moved(np.stack((puzzle, whole)), draw)
        assert valid(found)
        assert np.array_equal(few, np.where(few > 0, found, 0))
        assert (few > 0).sum() == (puzzle > 0).sum()


def test_puzzles_have_the_answer_as_their_only_solution_and_parts_share_no_grid(task):
    side = SIDES[task.name]
    grids = []
    for data in (task.train, task.test):
        clues, answers = data.tensors
        assert clues.shape == (len(data), side**2, side + 1)
        assert torch.equal(clues.sum(dim=2), torch.ones(len(data), side**2))
        shown = clues.argmax(dim=2)
        assert torch.equal(torch.where(shown > 0, shown, answers + 1), answers + 1)
        assert shown.count_nonzero(dim=1).max() < side**2 / 2
        for row in torch.linspace(0, len(data) - 1, 40).long().tolist():
            assert list(solutions(shown[row].tolist(), side)) == [(answers[row] + 1).tolist()]
        grids.append({tuple(row) for row in answers.tolist()})
    assert not grids[0] & grids[1]


def test_the_same_puzzles_are_made_again(task):
    again = make_task(task.name)
    for one, other in zip((*task.train.tensors, *task.test.tensors), (*again.train.tensors, *again.test.tensors)):
        assert torch.equal(one, other)


def test_the_score_is_the_share_of_rows_that_are_right_everywhere():
    goal, targets = ExactMatch(3), torch.tensor([[0, 1], [2, 2], [1, 0]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1], [2, 0], [1, 0]]), 3).float().transpose(1, 2)
    metric = goal.metric()
    metric.update(logits, targets)
    assert float(metric.compute()) == pytest.approx(2 / 3)
    expected = -(10 * logits).log_softmax(dim=1).gather(1, targets[:, None])[:, 0].mean()
    torch.testing.assert_close(goal.loss(10 * logits, targets), expected)


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")  # untrained equilibria
def test_every_network_learns_from_a_batch(few):
    x, y = few.sample(6)
    for name, contestant in contestants_for(few).items():
        network = contestant.build(16)
        for step in getattr(network, "training_steps", lambda *_: [None])(0, 1):
            output = network(x, **(step.arguments if step else {}))
            assert output.shape == (6, 4, 16), name
            network.zero_grad()
            few.goal.loss(output, y).backward()
            for parameter in network.parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name


def textbook(network, x, steps):
    cell = network.layer.cell
    z = (torch.zeros(len(x), 16, 32), torch.zeros(len(x), 16, 32))
    for _ in range(steps):
        z = cell(z, x)
    return network.head(z[0]).transpose(1, 2)


@pytest.mark.parametrize("name", ["looped", "looped-last", "looped-segments", "looped-poisson"])
def test_loops_answer_as_one_written_out(few, name):
    network, x = thinkers(few)[name].build(16).eval(), few.sample(5)[0]
    torch.testing.assert_close(network(x), textbook(network, x, STEPS))
    assert STEPS == SEGMENT * SEGMENTS


def test_answers_after_any_number_of_steps(few):
    network, x = thinkers(few)["deq-jfb"].build(16).eval(), few.sample(5)[0]
    assert isinstance(network, Repeating)
    assert not isinstance(thinkers(few)["stack"].build(16), Repeating)
    for count, answer in zip((1, 3, 10), network.after(x, (1, 3, 10)), strict=True):
        torch.testing.assert_close(answer, textbook(network, x, count))
    found = depth_scores(thinkers(few)["looped"].build(16).eval(), few, "cpu")
    assert list(found) == list(DEPTHS)
    looped = thinkers(few)["looped"].build(16).eval()
    assert depth_scores(looped, few, "cpu")[STEPS] == score(looped, few, "cpu")


def test_depths_are_drawn_for_each_row_in_training_alone(few):
    network, x = thinkers(few)["looped-poisson"].build(16), few.sample(1)[0].expand(64, -1, -1)
    alike = [len({tuple(row) for row in network.train(mode)(x).flatten(1).tolist()}) for mode in (True, False)]
    assert alike[0] > 3
    assert alike[1] == 1


def test_segments_go_on_from_where_the_last_one_stopped(few):
    network, x = thinkers(few)["looped-segments"].build(16), few.sample(4)[0]
    outputs = [network(x, **step.arguments) for step in network.training_steps(0, 1)]
    assert len(outputs) == SEGMENTS
    for segment, output in enumerate(outputs, 1):
        torch.testing.assert_close(output, textbook(network, x, SEGMENT * segment))


@pytest.mark.usefixtures("latency_of_one_row")
def test_a_comparison_shows_what_more_steps_add(few, tmp_path):
    names = ("looped", "looped-segments", "deq-jfb", "stack")
    networks = {name: thinkers(few)[name] for name in names}
    found = compare(few, networks, seeds=2, epochs=1, search=False, out=tmp_path / "run")
    assert not found.failures
    assert (tmp_path / "run" / "more-steps.png").is_file()
    rows = {row.name: row for row in found.rows}
    assert list(rows["looped"].runs[0].measurement.depth_scores) == list(DEPTHS)
    assert not rows["stack"].runs[0].measurement.depth_scores
    assert rows["looped"].runs[0].measurement.converged is None  # it has no tolerance
    assert rows["deq-jfb"].runs[0].measurement.converged is not None
    budget = rows["looped"].parameters
    assert all(abs(row.parameters - budget) <= 0.06 * budget for row in found.rows)


def test_another_goal_is_refused():
    with pytest.raises(InputError, match="networks for puzzles need the goal ExactMatch"):
        thinkers(make_task("rings"))
