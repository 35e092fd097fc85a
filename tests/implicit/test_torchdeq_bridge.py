"""Our solvers in a model of torchdeq's."""

import warnings

import pytest
import torch
import torchdeq
from torch import nn

from implicit import ConvergenceWarning, Equilibrium, ImplicitGradient, record, torchdeq_bridge
from solvers import Anderson, Picard


class Cell(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.linear = nn.Linear(width, width, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.mul_(0.8)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


class Injected(nn.Module):
    """A cell with its input, as torchdeq takes it."""

    def __init__(self, cell, x):
        super().__init__()
        self.cell, self.x = cell, x

    def forward(self, z):
        return self.cell(z, self.x)


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
    value, sampled, _ = solver(f, torch.zeros(3, 2), max_iter=10, tol=1e-3, indexing=[1, 2, 10])
    assert all(map(torch.equal, sampled, [*images[:2], value]))
    value, sampled, _ = solver(f, torch.zeros(3, 2), tol=1e-3, indexing=[50])
    assert torch.equal(sampled[0], value)


@pytest.mark.parametrize(("core", "at"), [("indexing", (3, 5)), ("sliced", (3, 6))])
def test_what_indexing_is_in_our_layer(core, at):
    cell, x = Cell(), torch.randn(5, 8, dtype=torch.float64)
    deq = torchdeq.get_deq(core=core, f_max_iter=400, f_tol=1e-10, indexing=[2, 4])
    states, _ = deq(lambda z: cell(z, x), torch.zeros_like(x))
    assert len(states) == (2 if core == "indexing" else 3), "which forgets the solution"
    for one, other in zip(states, Equilibrium(cell, solver=Picard(), rtol=1e-10).iterates(x, at=at)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_indexing_by_the_bridge_is_that_of_plain_iteration_and_keeps_the_solution():
    cell, x = Cell(), torch.randn(5, 8, dtype=torch.float64)
    deq = torchdeq.get_deq(core="indexing", f_solver="implicit_picard", f_max_iter=400, f_tol=1e-10, indexing=[2, 4])
    states, _ = deq(lambda z: cell(z, x), torch.zeros_like(x))
    expected = Equilibrium(cell, solver=Picard(), rtol=1e-10).iterates(x, at=(3, 5))
    torch.testing.assert_close(states, list(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_states", [1, 3])
def test_the_last_state_has_the_exact_gradient(n_states):
    cell, x = Cell(), torch.randn(5, 8, dtype=torch.float64)
    options = {"core": "indexing", "ift": True, "b_tol": 1e-10, "b_max_iter": 200, "n_states": n_states}
    deq = torchdeq.get_deq(f_solver="implicit_anderson", f_max_iter=400, f_tol=1e-10, **options)
    (*_, last), _ = deq(lambda z: cell(z, x), torch.zeros_like(x))
    layer = Equilibrium(cell, rtol=1e-11, gradient=ImplicitGradient(rtol=1e-10))
    expected = torch.autograd.grad(layer(x).sin().sum(), cell.linear.weight)
    torch.testing.assert_close(torch.autograd.grad(last.sin().sum(), cell.linear.weight), expected)


def test_the_last_state_of_a_solve_that_fails_is_the_best():
    worse = iter([0.5, 0.01, 0.9, 0.9])
    with pytest.warns(ConvergenceWarning):
        value, states, info = torchdeq_bridge.in_torchdeqs_form(Picard())(
            lambda z: z + next(worse), torch.zeros(1, 1), max_iter=4, indexing=[4]
        )
    assert value == states[0] == 0.5
    torch.testing.assert_close(info["abs_lowest"], torch.tensor([0.01]))


@pytest.mark.parametrize("ift", ["ift", "hook_ift"])
def test_a_solve_that_fails_warns_once_a_model_and_pass(ift):
    x = torch.randn(5, 8, dtype=torch.float64)

    def trained(cell, **options):
        deq = torchdeq.get_deq(f_solver="implicit_picard", b_solver="implicit_picard", **{ift: True}, **options)
        injected = Injected(cell, x)

        def step():
            with warnings.catch_warnings(record=True) as heard, record() as log:
                warnings.simplefilter("always")
                deq(injected, torch.zeros_like(x))[0][-1].sum().backward()
            assert len(log.forward) == len(log.backward) == 1
            return [str(warning.message) for warning in heard if warning.category is ConvergenceWarning]

        return step

    for _ in range(2):  # each model anew
        step = trained(Cell(), f_max_iter=2, b_max_iter=2)
        forward, backward = step()
        assert "torchdeq, forward solve: 0 of 5 rows converged" in forward
        assert "f_max_iter" in forward
        assert "torchdeq, backward solve: 0 of 5 rows converged" in backward
        assert "b_max_iter" in backward
        assert not step()
    assert not trained(Cell(), f_max_iter=300, b_max_iter=300)()


@pytest.mark.parametrize("name", ["implicit_anderson", "implicit_broyden", "implicit_picard"])
def test_starts_and_images_have_any_strides_and_max_iter_is_the_budget(name):
    calls, start = [], torch.zeros(2, 4, 3).mT

    def f(z):
        calls.append(z.shape)
        return torch.sin(9 * z.mT).mT + torch.ones(())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        torchdeq.get_deq(f_solver=name, f_max_iter=20, f_tol=1e-6)(f, start)
    assert set(calls) == {start.shape}
    assert len(calls) <= 21, "one is tracked besides"


def test_a_tensor_of_scalars_is_a_batch():
    value, _, info = torchdeq_bridge.in_torchdeqs_form(Anderson())(torch.cos, torch.zeros(4), tol=1e-6)
    torch.testing.assert_close(value, torch.full((4,), 0.739085), rtol=1e-4, atol=1e-5)
    assert info["nstep"].shape == (4,)


@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 8)])
def test_an_empty_batch_has_an_empty_solution(shape):
    cell, x = Cell(), torch.zeros(shape, dtype=torch.float64)
    deq = torchdeq.get_deq(f_solver="implicit_anderson", b_solver="implicit_gmres", ift=True)
    (z,), info = deq(lambda z: cell(z, x), torch.zeros_like(x))
    z.sum().backward()
    assert z.shape == shape
    assert len(info["nstep"]) == 0


def test_what_is_no_solver_or_option_is_refused():
    with pytest.raises(TypeError, match="is not a name with its Solver"):
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


def test_a_warning_names_the_users_line():
    deq = torchdeq.get_deq(f_solver="implicit_anderson", b_solver="implicit_gmres", ift=True, f_max_iter=2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        deq(lambda z: torch.tanh(z + 1.0), torch.zeros(4, 3))
    assert [each.filename for each in told] == [__file__]
