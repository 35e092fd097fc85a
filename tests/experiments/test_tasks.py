"""Tasks and networks of the comparison."""

import pytest
import torch
from torch import nn

from experiments.measure import measure
from experiments.networks import FAMILIES, TOLERANCE, matched_width, parameters
from experiments.tasks import RADII, TASKS, Task
from models import OptDNN


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_whole_and_its_split_fixed(name):
    task, again = TASKS[name](), TASKS[name]()
    for part, same in ((task.train, again.train), (task.test, again.test)):
        assert torch.equal(part[0], same[0])
        assert part[0].dtype == torch.float32
        assert part[1].dtype == torch.int64
        assert set(part[1].tolist()) == set(range(task.classes))


def test_digits_are_all_of_them_and_none_twice():
    task = TASKS["digits"]()
    assert len(task.train[0]) + len(task.test[0]) == 1797
    assert task.train[0].shape[1:] == (1, 8, 8)
    assert -1 <= task.train[0].min() < task.train[0].max() <= 1
    train = {tuple(image.flatten().tolist()) for image in task.train[0]}
    assert not train & {tuple(image.flatten().tolist()) for image in task.test[0]}


def test_rings_lie_where_they_should():
    inputs, labels = TASKS["rings"]().test
    radius = inputs.norm(dim=1)
    assert radius[labels == 0].max() <= RADII[0] + 1e-6
    assert radius[labels == 1].min() >= RADII[1] - 1e-6
    assert radius[labels == 1].max() <= RADII[2] + 1e-6


def test_non_finite_data_are_refused():
    good, bad = torch.zeros(2, 2), torch.tensor([[0.0, torch.nan]])
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="test inputs hold NaN or Inf"):
        Task("broken", "", 1, (good, labels), (bad, labels[:1]))


@pytest.mark.parametrize("task", FAMILIES)
def test_all_networks_have_the_same_number_of_parameters(task):
    family, hidden = FAMILIES[task]
    budget = parameters(family["gd"].build(hidden))
    inputs = TASKS[task]().train[0][:3]
    for name, contestant in family.items():
        network = contestant.build(matched_width(contestant.build, budget))
        assert abs(parameters(network) - budget) <= TOLERANCE * budget, name
        assert network(inputs).shape == (3, TASKS[task]().classes)


def test_explicit_and_implicit_readings_have_the_same_parameters():
    family, _ = FAMILIES["digits"]
    for method in ("pgd", "fista"):
        explicit, implicit = (family[f"{method}-{reading}"].build(8) for reading in ("explicit", "implicit"))
        implicit.load_state_dict(explicit.state_dict())


def test_an_unreachable_budget_is_refused():
    with pytest.raises(ValueError, match="no hidden width meets 150 parameters within 2%"):
        matched_width(lambda hidden: nn.Linear(99, hidden), 150)


def test_flops_and_saved_bytes_are_those_of_a_linear_layer():
    inputs, labels = torch.randn(100, 20), torch.arange(100) % 3
    task = Task("toy", "", 3, (inputs, labels), (inputs, labels))
    numbers = measure(nn.Linear(20, 3, bias=False), task, "cpu")
    assert numbers.flops == 2 * 20 * 3
    assert numbers.converged == 1
    assert numbers.forward_evaluations == 0
    # the input; logits' log-softmax; the labels and the total weight of the loss
    assert numbers.saved_bytes >= inputs.untyped_storage().nbytes() + 64 * 3 * 4


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

    inputs, labels = torch.randn(50, 3), torch.arange(50) % 3
    numbers = measure(Head(), Task("toy", "", 3, (inputs, labels), (inputs, labels)), "cpu")
    assert len(numbers.solutions) == 2
    expected = sum(solution.evaluations.double().mean().item() for solution in numbers.solutions)
    assert numbers.forward_evaluations == pytest.approx(expected)
    assert expected >= 4
