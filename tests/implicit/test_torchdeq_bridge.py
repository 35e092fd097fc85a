"""Our solvers in a model of torchdeq's."""

import pytest
import torch
import torchdeq
from torch import nn

from implicit import Equilibrium, torchdeq_bridge
from solvers import Anderson


class Cell(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.linear = nn.Linear(width, width, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.mul_(0.8)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


@pytest.fixture(autouse=True)
def registered():
    torchdeq_bridge.register()


def run(cell, x, **options):
    cell.zero_grad()
    deq = torchdeq.get_deq(ift=True, f_max_iter=100, b_max_iter=100, **options)
    (z, *_), info = deq(lambda z: cell(z, x), torch.zeros_like(x))
    z.square().sum().backward()
    return z.detach(), cell.linear.weight.grad.clone(), info


@pytest.mark.parametrize("name", torchdeq_bridge.SOLVERS)
def test_a_model_of_torchdeqs_uses_them_by_name(name):
    torch.manual_seed(0)
    cell, x = Cell(), torch.randn(5, 8, dtype=torch.float64)
    forward = "implicit_anderson" if name == "implicit_gmres" else name
    z, grad, info = run(cell, x, f_solver=forward, b_solver=name, f_tol=1e-10, b_tol=1e-10)
    expected, expected_grad, _ = run(
        cell, x, f_solver="fixed_point_iter", b_solver="fixed_point_iter", f_tol=1e-12, b_tol=1e-12
    )
    torch.testing.assert_close(z, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-8)
    assert (info["abs_lowest"] <= 1e-10).all()
    assert info["rel_trace"].shape == (5, int(info["nstep"].max()))
    assert info["rel_trace"].max() <= 1, "no 1e8 at the start"


def test_the_tolerance_means_what_torchdeq_means():
    x = torch.randn(4, 8, dtype=torch.float64)
    solver = torchdeq_bridge.in_torchdeqs_form(Anderson())

    def f(z):
        return 0.5 * z + 100 * x

    for stop_mode in ("abs", "rel"):
        z, _, info = solver(f, torch.zeros_like(x), max_iter=200, tol=1e-4, stop_mode=stop_mode)
        difference = (f(z) - z).norm(dim=1)
        scale = 1 if stop_mode == "abs" else f(z).norm(dim=1)
        assert (difference <= 1.0001e-4 * scale).all()
        torch.testing.assert_close(info["abs_lowest"], difference)


def test_sampled_states_come_back():
    images = []

    def f(z):
        images.append(0.9 * z + 1)
        return images[-1]

    solver = torchdeq_bridge.in_torchdeqs_form(Anderson())
    _, sampled, _ = solver(f, torch.zeros(3, 2), max_iter=10, tol=1e-3, indexing=[1, 2])
    assert [torch.equal(state, image) for state, image in zip(sampled, images)] == [True, True]
    value, sampled, _ = solver(f, torch.zeros(3, 2), tol=1e-3, indexing=[50])
    assert torch.equal(sampled[0], value)


def test_a_tensor_of_scalars_is_a_batch():
    value, _, info = torchdeq_bridge.in_torchdeqs_form(Anderson())(torch.cos, torch.zeros(4), tol=1e-6)
    torch.testing.assert_close(value, torch.full((4,), 0.739085), rtol=1e-4, atol=1e-5)
    assert info["nstep"].shape == (4,)


def test_what_is_no_solver_or_option_is_refused():
    with pytest.raises(TypeError, match="is not a name and a Solver"):
        torchdeq_bridge.register({"anderson": "anderson"})
    solver = torchdeq_bridge.in_torchdeqs_form(Anderson())
    with pytest.raises(ValueError, match="stop_mode='absolute' must be 'abs' or 'rel'"):
        solver(torch.cos, torch.zeros(4), stop_mode="absolute")
    with pytest.raises(TypeError, match="tau"):
        solver(torch.cos, torch.zeros(4), tau=0.5)


def test_it_agrees_with_our_own_layer():
    torch.manual_seed(0)
    cell, x = Cell(), torch.randn(5, 8, dtype=torch.float64)
    z, _, _ = run(cell, x, f_solver="implicit_broyden", b_solver="implicit_gmres", f_tol=1e-11, b_tol=1e-11)
    layer = Equilibrium(cell, rtol=1e-11, atol=0.0)
    torch.testing.assert_close(z, layer(x).detach(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["implicit_anderson", "implicit_broyden", "implicit_picard"])
def test_images_need_not_be_contiguous_and_max_iter_is_kept(name):
    torchdeq_bridge.register()
    generator, calls = torch.Generator().manual_seed(0), []
    weight = 0.3 * torch.randn(3, 3, generator=generator)

    def f(z):
        calls.append(1)
        return torch.sin(4 * z.transpose(1, 2) @ weight + 1).transpose(1, 2)

    (z,), _ = torchdeq.get_deq(f_solver=name, f_max_iter=20, f_tol=1e-12)(f, torch.zeros(2, 3, 4))[:2]
    assert z.shape == (2, 3, 4)
    assert len(calls) <= 23
