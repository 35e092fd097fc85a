"""Whole networks: every method in every reading it admits, baselines, monDEQ and MDEQ."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from implicit import record
from models import METHODS, ParaFormer, baselines
from models.blocks import dense
from models.mdeq import MDEQ
from models.mondeq import MonotoneCell, mondeq
from models.networks import convnext_form, image_network, narrow_deep, vector_network, vit_form, wide_shallow
from models.readings import Explicit, Implicit, InfiniteDepth, Sweeps
from solvers import Anderson, Monotone, Status, solve

READINGS = [Explicit(), Implicit(), Implicit(alpha=0.5), InfiniteDepth(), Sweeps(1), Sweeps(2)]
IMAGE = (4, 3, 16, 16)
FORMS = {
    "vector": (lambda m, r: vector_network(5, 3, m, reading=r, width=8, hidden=6, depth=3), (4, 5)),
    "image": (lambda m, r: image_network(3, 3, m, reading=r, widths=(4, 8), depths=(2, 2)), IMAGE),
    "convnext": (lambda m, r: convnext_form(3, m, reading=r, widths=(8, 12), depths=(2, 1), patch=2), IMAGE),
    "isotropic": (lambda m, r: convnext_form(3, m, reading=r, widths=(8,), depths=(3,), patch=4), IMAGE),
    "vit": (lambda m, r: vit_form(3, m, reading=r, image_size=16, patch_size=4, width=12, depth=2), IMAGE),
}


def admitted(method, reading):
    if isinstance(reading, Implicit):
        return METHODS[method].is_proximal
    return not (isinstance(reading, InfiniteDepth) and method == "dense")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reading", READINGS, ids=repr)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_every_reading_it_admits(method, reading, form):
    build, shape = FORMS[form]
    torch.manual_seed(0)
    if not admitted(method, reading):
        with pytest.raises(ValueError, match=r"explicit method|no equilibrium"):
            build(method, reading)
        return
    network, x = build(method, reading), torch.randn(shape)
    with record() as log:
        output = network(x)
        output.square().mean().backward()
    assert output.shape == (4, 3)
    assert all(entry.solution.converged.all() for entry in (*log.forward, *log.backward))
    assert bool(log.forward) == isinstance(reading, Implicit | InfiniteDepth)
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            assert ".second." in name, name  # of a splitting method
        else:
            assert parameter.grad.isfinite().all(), name


def test_the_last_second_transform_of_a_splitting_method_is_the_only_idle_one():
    network = vector_network(5, 3, "ladmm", width=8, hidden=6, depth=3)
    network(torch.randn(4, 5)).sum().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert idle
    assert all(name.startswith("1.transforms.2.second.") for name in idle)


def test_the_readings_of_a_method_share_their_parameters():
    torch.manual_seed(0)
    explicit = vector_network(5, 3, "fista", width=8, hidden=6, depth=3).eval()
    for reading in (Implicit(), Implicit(alpha=0.5)):
        other = vector_network(5, 3, "fista", reading=reading, width=8, hidden=6, depth=3)
        other.load_state_dict(explicit.state_dict())
    parallel = vector_network(5, 3, "fista", reading=Sweeps(3), width=8, hidden=6, depth=3)
    parallel[1].net.load_state_dict(explicit[1].state_dict())
    parallel[0].load_state_dict(explicit[0].state_dict())
    parallel[2].load_state_dict(explicit[2].state_dict())
    x = torch.randn(4, 5)
    torch.testing.assert_close(parallel.eval()(x), explicit(x), rtol=1e-5, atol=1e-6)  # as many sweeps as layers


def test_a_frozen_schedule_makes_the_equilibrium_that_all_single_transform_methods_share():
    torch.manual_seed(0)
    x, blocks = torch.randn(4, 8), dense(8, 6)
    tied = blocks.injected()
    blocks = type(blocks)(blocks.free, blocks.monotone, lambda: tied)
    reading = InfiniteDepth(rtol=1e-6)
    values = [
        reading.body(method, blocks, 1).eval()(x)
        for method in METHODS
        if METHODS[method].has_equilibrium and method != "pdhg"  # whose T₂ acts on a dual variable
    ]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-4, atol=1e-4)


def test_stages_halve_the_image_and_bad_stages_are_refused():
    shapes = []
    network = image_network(3, 2, widths=(4, 8, 12), depths=(1, 1, 1))
    for layer in network:
        layer.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[2:])))
    network(torch.randn(IMAGE))
    assert {(16, 16), (8, 8), (4, 4)} <= set(shapes)
    with pytest.raises(ValueError, match=r"widths=\(4, 8\) and depths=\(1,\) must have the same length"):
        image_network(3, 2, widths=(4, 8), depths=(1,))


def test_published_forms_have_their_sizes():
    def millions(network):
        return sum(p.numel() for p in network.parameters()) / 1e6

    with torch.device("meta"):
        assert 10 < millions(wide_shallow(10)) < 40
        assert 0.5 < millions(narrow_deep(10)) < 4
        tiny = sum(p.numel() for p in baselines.convnext(3, 1000).parameters()) / 1e6
        assert millions(convnext_form(1000, "gd")) == pytest.approx(tiny, rel=0.02)
        assert millions(vit_form(1000, "gd")) == pytest.approx(5.7, abs=0.1)  # DeiT-Ti's


@pytest.mark.parametrize(
    "network",
    [
        lambda: baselines.resnet(3, 5, depths=(1, 1, 1, 1)),
        lambda: baselines.densenet(3, 5, depths=(2, 2)),
        lambda: baselines.convnext(3, 5, widths=(8, 16), depths=(1, 1), patch=2),
        lambda: baselines.vit(3, 5, image_size=16, patch_size=4, width=12, heads=3, hidden=24, depth=2),
    ],
    ids=["resnet", "densenet", "convnext", "vit"],
)
def test_baselines_of_torchvision_take_small_images(network):
    network = network()
    assert type(network).__module__.startswith("torchvision")
    assert network(torch.randn(IMAGE)).shape == (4, 5)


@pytest.mark.parametrize(("fault", "message"), [("ImportError('gone')", "gone"), ("RuntimeError('nms')", "one index")])
def test_a_missing_or_mismatched_torchvision_is_named(fault, message, tmp_path):
    (tmp_path / "torchvision.py").write_text(f"raise {fault}\n", encoding="utf-8")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from models import baselines; baselines.resnet(3, 5)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert message in last
    assert "torchvision" in last


@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_mondeq_is_solved_and_unique_for_large_weights(gain):
    torch.manual_seed(0)
    cell = MonotoneCell(20, 5).double()
    with torch.no_grad():
        cell.symmetric.mul_(gain)
        cell.skew.mul_(gain)
    x = torch.randn(8, 5, dtype=torch.float64)
    starts = [torch.zeros(8, 20, dtype=torch.float64), 10 * torch.randn(8, 20, dtype=torch.float64)]
    found = [solve(cell, z0, (x,), solver=Monotone(), rtol=1e-8, max_steps=500).check().value for z0 in starts]
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
    weight = (1 - cell.margin) * torch.eye(20) - cell.symmetric.T @ cell.symmetric + cell.skew - cell.skew.T
    symmetric = torch.eye(20) - (weight + weight.T) / 2
    assert torch.linalg.eigvalsh(symmetric).min() >= cell.margin - 1e-9


@pytest.mark.filterwarnings("ignore::implicit.ConvergenceWarning")  # nothing keeps MDEQ's cell solvable in training
def test_mondeq_and_mdeq_learn():
    torch.manual_seed(0)
    labels = torch.arange(12) % 3
    images = torch.randn(3, 1, 8, 8)[labels] + 0.1 * torch.randn(12, 1, 8, 8)
    for network in (nn.Sequential(nn.Flatten(), mondeq(64, 3, width=20)), MDEQ(1, 3, fine=8, coarse=8, groups=2)):
        optimiser = torch.optim.Adam(network.parameters(), 1e-2)
        losses = []
        for _ in range(25):
            loss = nn.functional.cross_entropy(network(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0], type(network)
        with record() as log:
            network(images)
        assert log.forward[0].solution.converged.double().mean() >= 0.75


def test_a_margin_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"margin=0 must lie in \(0, 1\]"):
        MonotoneCell(3, 2, margin=0)


def test_paraformer_and_vit_form_see_the_same_tokens():
    with pytest.raises(ValueError, match="image_size=10 is not a multiple of patch_size=4"):
        vit_form(3, image_size=10, patch_size=4)
    with pytest.raises(ValueError, match="image_size=10 is not a multiple of patch_size=4"):
        ParaFormer(image_size=10, patch_size=4, channels=1, classes=2)


def test_a_solver_of_ones_own_reaches_the_proximal_steps():
    network = vector_network(5, 3, "pgd", reading=Implicit(solver=Anderson(memory=2)), width=8, hidden=6, depth=2)
    assert all(step.resolvent.solver == Anderson(memory=2) for step in network[1].transforms)
    assert Status.CONVERGED in network[1].transforms[0].resolvent.solve(torch.randn(2, 8), torch.randn(2, 8)).status
