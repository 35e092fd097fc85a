"""Tasks and networks of the comparison."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.utils.data import TensorDataset

from experiments.contestants.matching import matched_size
from experiments.contestants.own import known
from experiments.contestants.terms import TERMS, flops, parameters
from experiments.errors import InputError
from experiments.failures import Failures
from experiments.measuring.measure import measure
from experiments.reporting.figures.answers import functions
from experiments.reporting.statistics import fitted_slope, paired_difference
from experiments.tasks.goals import Classification, margins
from experiments.tasks.make import make_task
from experiments.tasks.small import RADII, telgarsky_function
from experiments.tasks.task import Task
from models import OptDNN

SMALL = ("digits", "rings", "parity", "telgarsky")


def task(name):
    return make_task(name)


@pytest.mark.parametrize("name", SMALL)
def test_a_task_is_whole_and_its_split_fixed(name):
    first, again = task(name), task(name)
    for part, same in ((first.train, again.train), (first.test, again.test)):
        assert torch.equal(part.tensors[0], same.tensors[0])
        assert part.tensors[0].dtype == torch.float32
        if isinstance(first.goal, Classification):
            assert set(part.tensors[1].tolist()) == set(range(first.goal.classes))


def test_digits_are_all_of_them_and_none_twice():
    data = task("digits")
    assert len(data.train) + len(data.test) == 1797
    images = data.train.tensors[0]
    assert images.shape[1:] == (1, 8, 8)
    assert -1 <= images.min() < images.max() <= 1
    train = {tuple(image.flatten().tolist()) for image in images}
    assert not train & {tuple(image.flatten().tolist()) for image in data.test.tensors[0]}


def test_rings_lie_where_they_should():
    inputs, labels = task("rings").test.tensors
    radius = inputs.norm(dim=1)
    assert radius[labels == 0].max() <= RADII[0] + 1e-6
    assert radius[labels == 1].min() >= RADII[1] - 1e-6
    assert radius[labels == 1].max() <= RADII[2] + 1e-6


def test_parity_is_that_of_every_point():
    points, labels = task("parity").test.tensors
    assert len({tuple(point.tolist()) for point in points}) == len(points) == 256
    assert torch.equal(labels, 1 - (points < 0).sum(dim=1) % 2)


@pytest.mark.parametrize("folds", [1, 2, 3, 5])
def test_telgarskys_function_has_its_teeth(folds):
    grid = torch.linspace(0, 1, 2**folds + 1, dtype=torch.float64)
    values = telgarsky_function(grid, folds)
    assert torch.equal(values, torch.arange(2**folds + 1, dtype=torch.float64) % 2)
    between = telgarsky_function((grid[1:] + grid[:-1]) / 2, folds)
    torch.testing.assert_close(between, torch.full_like(between, 0.5))


def test_a_function_of_one_variable_is_drawn_beside_what_the_networks_make_of_it():
    data = make_task("telgarsky")
    networks = {"twice": lambda x: 2 * x, "none": torch.zeros_like}
    rows = [
        SimpleNamespace(name=name, runs=[SimpleNamespace(network=network, measurement=SimpleNamespace(score=0.25))])
        for name, network in networks.items()
    ]
    figure = functions(SimpleNamespace(task=data, rows=rows))
    inputs, targets = data.sample()
    for ax, (name, network) in zip(figure.axes, networks.items(), strict=True):
        assert ax.get_title() == f"{name}: MSE 2.50e-01"
        for line, values in zip(ax.lines, (targets, network(inputs)), strict=True):
            np.testing.assert_array_equal(line.get_xydata(), torch.cat((inputs, values), dim=1))
    assert functions(SimpleNamespace(task=make_task("rings"), rows=rows)) is None


def test_non_finite_data_are_refused():
    good, bad = torch.zeros(2, 2), torch.tensor([[0.0, torch.nan]])
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="task broken: its test part holds NaN or Inf"):
        Task("broken", TensorDataset(good, labels), TensorDataset(bad, labels[:1]), goal=Classification(1))


@pytest.mark.parametrize("name", ["digits", "telgarsky"])  # classes of pictures, and a function
def test_all_networks_have_about_the_same_number_of_parameters(name):
    data, terms = task(name), TERMS["parameters"]
    contestants = known(name, data)
    budget = parameters(contestants["gd"].build(contestants["gd"].size))
    inputs = data.sample(3)[0]
    outputs = 1 if name == "telgarsky" else data.goal.classes
    for contestant in contestants.values():
        network = contestant.build(matched_size("it", contestant.build, budget, terms.cost, inputs, terms.tolerance))
        assert network(inputs).shape == (3, outputs)


def test_explicit_and_implicit_readings_have_the_same_parameters():
    rows = known("digits", task("digits"))
    for method in ("pgd", "fista"):
        explicit, implicit = (rows[f"{method}-{reading}"].build(8) for reading in ("explicit", "implicit"))
        implicit.load_state_dict(explicit.state_dict())


def test_an_unreachable_budget_is_refused():
    with pytest.raises(InputError, match="no size comes within 2% of the baseline's 150"):
        matched_size("it", lambda hidden: nn.Linear(99, hidden), 150, parameters, torch.zeros(1), 0.02)
    with pytest.raises(InputError, match="--match shape, or match='shape', takes each network as it is"):
        matched_size("it", lambda hidden: nn.Linear(99, hidden), 150, parameters, torch.zeros(1), 0.02)


def test_equal_work_is_met():
    rows, inputs = known("rings", task("rings")), task("rings").sample(16)[0]
    target = flops(rows["gd"].build(24), inputs)
    size = matched_size("it", rows["pgd-implicit"].build, target, flops, inputs, 0.15)
    torch.manual_seed(0)
    assert flops(rows["pgd-implicit"].build(size).eval(), inputs) == pytest.approx(target, rel=0.15)


def test_flops_and_saved_bytes_are_those_of_a_linear_layer():
    inputs, labels = torch.randn(100, 20), torch.arange(100) % 3
    data = TensorDataset(inputs, labels)
    numbers = measure(nn.Linear(20, 3, bias=False), Task("toy", data, data, goal=Classification(3)), "cpu", Failures())
    assert numbers.flops == 2 * 20 * 3
    assert numbers.converged == 1
    assert numbers.forward_evaluations == 0
    # the input; logits' log-softmax; the labels and the total weight of the loss
    assert numbers.saved_bytes >= 64 * 20 * 4 + 64 * 3 * 4


def test_evaluations_of_all_solves_are_added():
    class Half(nn.Module):
        def forward(self, z):
            return -0.5 * z

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = OptDNN("ppa", [Half(), Half()], alpha=0.0)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * self.body(x)

    data = TensorDataset(torch.randn(50, 3), torch.arange(50) % 3)
    numbers = measure(Head(), Task("toy", data, data, goal=Classification(3), batch=8), "cpu", Failures())
    assert len(numbers.solutions) == 2
    expected = sum(solution.evaluations.double().mean().item() for solution in numbers.solutions)
    assert numbers.forward_evaluations == pytest.approx(expected)
    assert expected >= 4


def test_the_margin_of_a_linear_classifier_is_the_distance_to_its_boundary():
    head = nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        head.bias.copy_(torch.tensor([-5.0, 0.0]))  # boundary 3x + 4y = 5
    points = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(margins(head, points, torch.tensor([0, 1, 0])), torch.tensor([4.0, 1.0, -1.0]))


def test_paired_differences_have_students_interval():
    values, baseline = [0.91, 0.95, 0.9, 0.97, 0.93], [0.9, 0.91, 0.92, 0.93, 0.9]
    found = paired_difference(values, baseline)
    expected = scipy.stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert not found.decided
    assert paired_difference([1.0, 1.1, 1.2], [0.5, 0.61, 0.69]).decided
    assert paired_difference([1.0], [0.5]).low == -math.inf
    coarse = paired_difference([0.5, 0.6], [0.4, 0.5])  # shares of ten rows, of two networks that are alike
    assert coarse.low == pytest.approx(coarse.high)
    assert not paired_difference([0.5, 0.75], [0.25, 0.5]).decided


def test_the_slopes_interval_holds_the_exponent_of_a_power_law_nineteen_times_in_twenty():
    noise = np.random.default_rng(0)

    def slope():
        errors = {d: [d**-2.0 * math.exp(0.1 * noise.standard_normal()) for _ in range(4)] for d in (1, 2, 4, 8)}
        return fitted_slope(errors)

    held = [found.low < -2 < found.high for found in (slope() for _ in range(400))]
    assert 0.92 <= np.mean(held) <= 0.98
    assert slope().high - slope().low < 0.3


def test_a_slope_leaves_out_what_diverged_and_claims_nothing_of_too_few():
    slope = fitted_slope({1: [1.0, math.nan], 2: [0.25], 4: [0.0625, math.inf]})
    assert slope.value == pytest.approx(-2)
    assert fitted_slope({1: [1.0, math.nan], 2: [0.25]}).high == math.inf
