"""Evaluation in parallel over depth: the scan, the stacked transforms, the tolerance, Newton's sweeps."""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from implicit import ImplicitGradient, record
from models import (
    METHODS,
    Dense,
    GradientDescent,
    HeavyBall,
    MonotoneDense,
    Newton,
    OptDNN,
    Parallel,
    lyapunov_exponent,
    parallel_evaluate,
)
from models.blocks import attention, convnext, convolutional, dense
from models.parallel.likeness import UnlikeError
from models.parallel.newton import scan
from models.parallel.stack import Stack
from models.parallel.trajectory import Trajectory, starts_alike
from solvers import Anderson, Solution, Status
from solvers.state import tree_leaves
from tests.legacy import Sine

WIDTH, DEPTH = 5, 6
EXACT = ImplicitGradient(rtol=1e-10, max_steps=500)
by_method = pytest.mark.parametrize("name", METHODS)


def network(name, *, blocks=None, depth=DEPTH, learned=True, width=WIDTH):
    method, blocks = METHODS[name], blocks or dense(width, 7)
    layers = [method.layer(blocks) for _ in range(depth)]
    alpha = 0.0 if method.is_proximal else 1.0
    net = OptDNN(
        method.learned() if learned else method, layers, alpha=alpha, rtol=1e-11, max_steps=500, gradient=EXACT
    )
    for transform in net.transforms if method.is_proximal else ():
        transform.resolvent.atol = 0.0  # only rtol decides
    return net.eval()


def gradients(output, net, z):
    found = torch.autograd.grad(
        output.square().sum(), [z, *net.parameters()], allow_unused=True, materialize_grads=True
    )
    return list(found)


# --- the linear part ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 5, 8, 13])
def test_the_scan_is_the_loop(length):
    matrices, vectors, x = torch.randn(length, 3, 3), torch.randn(length, 3, 2), torch.randn(3, 2)
    expected = [x]
    for matrix, vector in zip(matrices, vectors, strict=True):
        expected.append(matrix @ expected[-1] + vector)
    torch.testing.assert_close(scan(matrices, vectors, torch.clone(x)), torch.stack(expected), rtol=1e-10, atol=1e-12)


def test_one_sweep_of_heavy_ball_weighs_the_branches_as_its_closed_form():
    layers, beta, z = [Dense(WIDTH, 7) for _ in range(DEPTH)], 0.7, torch.randn(3, WIDTH)
    weights = [(1 - beta ** (DEPTH - k)) / (1 - beta) for k in range(DEPTH)]
    expected = z + sum(weight * layer(z) for weight, layer in zip(weights, layers, strict=True))
    output = parallel_evaluate(OptDNN(HeavyBall(beta), layers), z, sweeps=1, batched=True)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [0.5, lambda k: 1 / (k + 1)])
def test_step_sizes_count(step):
    net, z = OptDNN(GradientDescent(step=step), [Dense(WIDTH, 7) for _ in range(DEPTH)]), torch.randn(3, WIDTH)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH, batched=True), net(z), rtol=0, atol=1e-12)


class Clipped(GradientDescent):
    def advance(self, streams, y, t, c):
        return (y + t.clamp(-0.5, 0.5),)


def test_a_method_that_does_more_than_add_and_scale_is_refused():
    net = OptDNN(Clipped(), [Dense(WIDTH, 7) for _ in range(DEPTH)])
    with pytest.raises(
        TypeError, match="cannot be evaluated in parallel over its depth: its query and advance do more"
    ):
        parallel_evaluate(net, torch.zeros(1, WIDTH), sweeps=1, batched=True)


def test_fixed_coefficients_are_scanned_once(monkeypatch):
    made = []
    original = Trajectory.__init__
    monkeypatch.setattr(Trajectory, "__init__", lambda self, *args: (made.append(1), original(self, *args))[1])
    net = network("nesterov", learned=False)
    for dtype in (torch.float64, torch.float64, torch.float32):
        net.to(dtype)
        z = torch.randn(3, WIDTH, dtype=dtype)
        torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH, batched=True), net(z))
    assert len(made) == 2  # once for each dtype


# --- every row of the table --------------------------------------------------------------------------------------


@by_method
def test_as_many_batched_sweeps_as_layers_are_the_serial_network(name):
    net, z = network(name), torch.randn(3, WIDTH, requires_grad=True)
    serial, parallel = net(z), parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    torch.testing.assert_close(parallel, serial, rtol=0, atol=1e-8)
    torch.testing.assert_close(gradients(parallel, net, z), gradients(serial, net, z), rtol=1e-4, atol=1e-5)


@by_method
@pytest.mark.parametrize("sweeps", [1, 3])
def test_batched_sweeps_are_the_loops(name, sweeps):
    net, z = network(name), torch.randn(3, WIDTH, requires_grad=True)
    batched, loop = (parallel_evaluate(net, z, sweeps=sweeps, batched=batched) for batched in (True, False))
    torch.testing.assert_close(batched, loop, rtol=0, atol=1e-8)
    torch.testing.assert_close(gradients(batched, net, z), gradients(loop, net, z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("blocks", "shape"),
    [
        (convolutional(8, 6), (2, 8, 4, 4)),
        (convnext(8, 12, kernel=3), (2, 8, 4, 4)),
        (attention(6, 8, heads=2), (2, 5, 6)),
    ],
    ids=["conv", "convnext", "attention"],
)
@pytest.mark.parametrize("name", ["apg2", "pdhg", "pgd"])
def test_images_and_tokens_are_stacked_too(name, blocks, shape):
    net, z = network(name, blocks=blocks, depth=3), torch.randn(shape, requires_grad=True)
    serial, parallel = net(z), parallel_evaluate(net, z, sweeps=3, batched=True)
    torch.testing.assert_close(parallel, serial, rtol=0, atol=1e-7)
    torch.testing.assert_close(gradients(parallel, net, z), gradients(serial, net, z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ppa", "pgd", "fista"])
def test_all_resolvents_of_a_sweep_are_one_solve(name):
    net, z = network(name), torch.randn(3, WIDTH)
    with record() as log:
        parallel_evaluate(net, z, sweeps=2, batched=True)
    assert [len(entry.solution.steps) for entry in log.forward] == [3 * DEPTH] * 2


@pytest.mark.parametrize("name", ["gd", "pgd"])
def test_tied_layers_are_one_batch(name):
    method, blocks = METHODS[name], dense(WIDTH, 7)
    net = OptDNN(
        method,
        [method.layer(blocks)] * DEPTH,
        alpha=0.0 if name == "pgd" else 1.0,
        rtol=1e-11,
        max_steps=500,
        gradient=EXACT,
    )
    z = torch.randn(3, WIDTH, requires_grad=True)
    serial, parallel = net.eval()(z), parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    torch.testing.assert_close(parallel, serial, rtol=0, atol=1e-8)
    torch.testing.assert_close(gradients(parallel, net, z), gradients(serial, net, z), rtol=1e-4, atol=1e-5)


def test_further_inputs_go_to_every_layer():
    layers = [Dense(WIDTH, 7, inputs=2) for _ in range(DEPTH)]
    net, z, x = OptDNN("nesterov", layers), torch.randn(3, WIDTH), torch.randn(3, 2)
    torch.testing.assert_close(parallel_evaluate(net, z, x, sweeps=DEPTH, batched=True), net(z, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_of_one(batch):
    net, z = network("nesterov"), torch.randn(batch, WIDTH)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH, batched=True), net(z), rtol=0, atol=1e-12)


def test_second_derivatives_go_through():
    net, z = network("nesterov"), torch.randn(2, WIDTH, requires_grad=True)

    def curvature(output):
        (slope,) = torch.autograd.grad(output.sin().sum(), z, create_graph=True)
        return gradients(slope, net, z)

    serial, parallel = net(z), parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    torch.testing.assert_close(curvature(parallel), curvature(serial), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_agrees_to_its_rounding(dtype):
    net, z = network("nesterov").to(dtype), torch.randn(3, WIDTH).to(dtype)
    output = parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    assert output.dtype == dtype
    torch.testing.assert_close(output, net(z), rtol=0, atol=32 * torch.finfo(dtype).eps)


def test_autocast_leaves_the_linear_part_alone():
    net, z = network("nesterov").float(), torch.randn(3, WIDTH, dtype=torch.float32)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        serial, parallel = net(z), parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    assert parallel.dtype == serial.dtype == torch.float32
    torch.testing.assert_close(parallel, serial, rtol=0, atol=0.1)


def test_a_row_of_nan_spoils_no_other():
    net, z = network("nesterov"), torch.randn(3, WIDTH)
    expected, z[1] = net(z), torch.nan
    output = parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    assert output.isfinite().all(dim=1).tolist() == [True, False, True]
    torch.testing.assert_close(output[::2], expected[::2], rtol=0, atol=1e-12)
    with pytest.warns(UserWarning, match="NON_FINITE"):
        solution = parallel_evaluate(net, z, rtol=1e-9)
    assert solution.converged.tolist() == [True, False, True]
    torch.testing.assert_close(solution.value[::2], expected[::2], rtol=0, atol=1e-7)


def test_networks_without_values_have_shapes():
    with torch.device("meta"):
        net, z = network("nesterov", depth=20), torch.empty(3, WIDTH)
    assert parallel_evaluate(net, z, sweeps=2).shape == (3, WIDTH)
    for newton in (Newton(), Newton(diagonal=True), Newton(diagonal=True, probes=2), Newton(damping=1.0)):
        assert parallel_evaluate(net, z, sweeps=2, newton=newton).shape == (3, WIDTH)  # nothing is copied from the host


class Exponential(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, z):
        return (self.scale * z).exp() - z - self.scale


def test_overflow_on_a_bad_guess_spoils_neither_value_nor_gradient_where_layers_are_stacked():
    # the first layer takes 1000 to 1; the others overflow at 1000
    net = OptDNN("gd", [Exponential(scale) for scale in (-1.0, 1.0, 1.0, 1.0)])
    z = torch.full((2, WIDTH), 1000.0, requires_grad=True)
    serial, parallel = net(z), parallel_evaluate(net, z, sweeps=4, batched=True)
    assert serial.isfinite().all()
    torch.testing.assert_close(parallel, serial, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(parallel, net, z), gradients(serial, net, z), rtol=1e-11, atol=0)


class Logistic(nn.Module):
    """`z + T(z) = r z (1 − z)` stays in [0, 1], and soon overflows from anywhere else."""

    def __init__(self, rate):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, z):
        return self.rate * z * (1 - z) - z


@pytest.mark.parametrize(
    "newton", [None, Newton(), Newton(diagonal=True), Newton(damping=0.5), Newton(diagonal=True, damping=0.5)]
)
@pytest.mark.parametrize(
    ("dtype", "depth", "rate", "digits"), [(torch.float64, 14, 3.6, 1e-6), (torch.float32, 40, 2.5, 1e-4)]
)
def test_guesses_that_overflow_at_any_depth_are_made_right_layer_by_layer(newton, dtype, depth, rate, digits):
    net = OptDNN("gd", [Logistic(rate + 0.01 * k) for k in range(depth)]).to(dtype)
    z = (0.2 + 0.6 * torch.rand(3, WIDTH)).to(dtype).requires_grad_()
    serial = net(z)
    to_tolerance = parallel_evaluate(net, z, rtol=1e-6 * digits, newton=newton)
    assert to_tolerance.steps.max() <= depth + 1
    after_all = parallel_evaluate(net, z, sweeps=depth, newton=newton)
    wanted = gradients(serial, net, z)
    for found in (to_tolerance.value, after_all):
        torch.testing.assert_close(found, serial, rtol=0, atol=1e-5 * digits if dtype == torch.float64 else 1e-6)
        torch.testing.assert_close(gradients(found, net, z), wanted, rtol=digits, atol=digits)
    with torch.no_grad():
        found = parallel_evaluate(net, z, sweeps=depth, newton=newton)
    torch.testing.assert_close(found, serial, rtol=0, atol=digits**2)


# --- a tolerance -------------------------------------------------------------------------------------------------


@by_method
def test_a_tolerance_gives_the_serial_network_and_its_gradients(name):
    net, z = network(name), torch.randn(3, WIDTH, requires_grad=True)
    serial, solution = net(z), parallel_evaluate(net, z, rtol=1e-9)
    assert solution.converged.all()
    assert solution.steps.max() <= DEPTH + 1
    torch.testing.assert_close(solution.value, serial, rtol=0, atol=1e-7)
    torch.testing.assert_close(gradients(solution.value, net, z), gradients(serial, net, z), rtol=1e-4, atol=1e-5)


def test_a_loose_tolerance_stops_early():
    net, z = network("gd", depth=32), torch.randn(4, WIDTH)
    loose, tight = (parallel_evaluate(net, z, rtol=rtol) for rtol in (1e-2, 1e-8))
    assert loose.steps.max() < tight.steps.min() < 32
    assert (loose.value - net(z)).norm() < 0.05 * net(z).norm()


def test_rows_stop_on_their_own():
    net, z = network("gd"), torch.stack((torch.zeros(WIDTH), 50 * torch.randn(WIDTH)))
    together = parallel_evaluate(net, z, rtol=1e-6)
    alone = [parallel_evaluate(net, row[None], rtol=1e-6) for row in z]
    assert together.steps.tolist() == [solution.steps.item() for solution in alone]


def test_too_few_sweeps_for_the_tolerance_are_said_so():
    net, z = network("gd"), torch.randn(3, WIDTH)
    with pytest.warns(UserWarning, match="MAX_STEPS") as told:
        solution = parallel_evaluate(net, z, rtol=1e-12, max_sweeps=2)
    assert (solution.status == Status.MAX_STEPS).all()
    for text in (str(told[0].message), solution.summary()):
        assert "raise max_sweeps, loosen rtol, or try another newton=" in text
        assert "max_steps" not in text
        assert "spectral radius" not in text  # that of a map which is exact layer by layer is 0


@by_method
def test_an_empty_batch(name):
    net, z = network(name), torch.zeros(0, WIDTH, requires_grad=True)
    solution = parallel_evaluate(net, z, rtol=1e-5)
    for found in (parallel_evaluate(net, z, sweeps=2), parallel_evaluate(net, z, sweeps=DEPTH), solution.value):
        assert found.shape == (0, WIDTH)
        (gradient,) = torch.autograd.grad(found.sum(), z)
        assert gradient.shape == z.shape


@pytest.mark.parametrize("name", ["gd", "apg2", "pdhg"])
def test_anderson_drives_the_sweeps(name):
    net, z = network(name), torch.randn(3, WIDTH, requires_grad=True)
    solution = parallel_evaluate(net, z, rtol=1e-9, solver=Anderson(), max_sweeps=60)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, net(z), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradients(solution.value, net, z), gradients(net(z), net, z), rtol=1e-4, atol=1e-4)


# --- Newton ------------------------------------------------------------------------------------------------------

ONE_TRANSFORM = ["gd", "heavy_ball", "nesterov", "apg2", "agd3", "ppa", "pgd", "fista"]


class Gentle(nn.Module):
    """Smooth, as Newton's method wants."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH)

    def forward(self, z):
        return self.outer(self.inner(z).tanh())


@pytest.mark.parametrize("name", ["gd", "heavy_ball", "nesterov", "apg2", "agd3"])
def test_newtons_sweeps_converge_quadratically(name):
    net, z = OptDNN(METHODS[name], [Gentle() for _ in range(12)]), torch.randn(3, WIDTH)
    serial = net(z)
    errors = [(parallel_evaluate(net, z, sweeps=k, newton=Newton()) - serial).norm().item() for k in range(1, 8)]
    plain = (parallel_evaluate(net, z, sweeps=7) - serial).norm().item()
    assert errors[-1] < 1e-10 * max(errors[0], 1)
    assert errors[-1] < 1e-6 * plain
    assert any(after < before**1.5 for before, after in pairwise(errors) if before < 0.1)


@pytest.mark.parametrize("name", ONE_TRANSFORM)
def test_newtons_sweeps_reach_the_tolerance_with_the_serial_gradients(name):
    net, z = network(name), torch.randn(3, WIDTH, requires_grad=True)
    solution = parallel_evaluate(net, z, rtol=1e-9, newton=Newton())
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, net(z), rtol=0, atol=1e-7)
    torch.testing.assert_close(gradients(solution.value, net, z), gradients(net(z), net, z), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["dense", "ladmm", "pdhg"])
def test_methods_without_a_newton_sweep_are_named(name):
    with pytest.raises(TypeError, match="has no Newton sweep"):
        parallel_evaluate(network(name), torch.zeros(1, WIDTH), sweeps=1, newton=Newton())


# --- contractivity -----------------------------------------------------------------------------------------------


class Matrix(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, z):
        return z @ self.matrix.T - z


@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_the_lyapunov_exponent_of_linear_layers_is_that_of_their_product(scale):
    matrices = [scale * torch.randn(WIDTH, WIDTH) / WIDTH**0.5 for _ in range(DEPTH)]
    product = torch.linalg.multi_dot(matrices[::-1])
    exponent = lyapunov_exponent(OptDNN("gd", [Matrix(m) for m in matrices]), torch.randn(3, WIDTH), steps=200)
    expected = torch.linalg.matrix_norm(product, 2).log() / DEPTH
    torch.testing.assert_close(exponent, expected.expand(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["nesterov", "pgd"])
def test_the_lyapunov_exponent_is_that_of_the_jacobian_of_each_row(name):
    net, z = network(name), torch.randn(2, WIDTH)
    for row, exponent in zip(z, lyapunov_exponent(net, z, steps=60), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda row: net(row[None])[0], row)
        expected = torch.linalg.matrix_norm(jacobian, 2).log() / DEPTH
        torch.testing.assert_close(exponent, expected, rtol=1e-4, atol=1e-4)


def test_the_lyapunov_exponent_of_attention_is_found():
    net = network("gd", blocks=attention(6, 8, heads=2), depth=3)
    z = torch.randn(2, 5, 6)
    found = lyapunov_exponent(net, z)
    with torch.inference_mode():
        torch.testing.assert_close(lyapunov_exponent(net, z.clone()), found, rtol=1e-3, atol=1e-4)


# --- stacks ------------------------------------------------------------------------------------------------------


def test_stacked_parameters_stay_what_they_are():
    net, z = OptDNN("gd", [Dense(WIDTH, 7) for _ in range(3)]), torch.randn(2, WIDTH)
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    identities = [id(parameter) for parameter in net.parameters()]
    first = parallel_evaluate(net, z, sweeps=3, batched=True)
    assert identities == [id(parameter) for parameter in net.parameters()]
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name])
    pointers = [parameter.data_ptr() for parameter in net.parameters()]
    parallel_evaluate(net, z, sweeps=3, batched=True)
    assert pointers == [parameter.data_ptr() for parameter in net.parameters()]  # moved once
    twin = copy.deepcopy(net)
    twin.load_state_dict(net.state_dict())
    torch.testing.assert_close(parallel_evaluate(twin, z, sweeps=3, batched=True), first, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["optimizer", "data in place", "new data", "dtype", "new parameter"])
def test_every_change_of_a_weight_is_seen(change):
    net, z = OptDNN("gd", [Dense(WIDTH, 7) for _ in range(3)]), torch.randn(2, WIDTH)
    before = parallel_evaluate(net, z, sweeps=3, batched=True)
    before.sum().backward()
    weight = net.transforms[1].inner.weight
    if change == "optimizer":
        torch.optim.SGD(net.parameters(), 0.1).step()
    elif change == "data in place":
        weight.data.mul_(2)
    elif change == "new data":
        weight.data = 3 * weight.data
    elif change == "dtype":
        net.float()
        z = z.float()
    else:
        net.transforms[1].inner.weight = nn.Parameter(5 * weight.detach())
    expected = net(z)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=3, batched=True), expected, rtol=1e-5, atol=1e-6)
    assert change == "dtype" or (expected - before).abs().max() > 1e-3


def test_a_weight_that_changes_before_the_backward_pass_is_not_used_silently():
    net, z = OptDNN("gd", [Dense(WIDTH, 7) for _ in range(3)]), torch.randn(2, WIDTH)
    output = parallel_evaluate(net, z, sweeps=3, batched=True)
    with torch.no_grad():
        net.transforms[1].outer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_weights_moved_under_inference_mode_can_be_trained():
    net, z = OptDNN("gd", [Dense(WIDTH, 7) for _ in range(3)]), torch.randn(2, WIDTH)
    with torch.inference_mode():
        first = parallel_evaluate(net, z, sweeps=3, batched=True)
    output = parallel_evaluate(net, z, sweeps=3, batched=True)
    output.sum().backward()
    torch.testing.assert_close(first.clone(), output.detach(), rtol=0, atol=1e-12)


def test_training_in_parallel_is_training_serially():
    torch.manual_seed(0)
    serial = OptDNN("heavy_ball", [Dense(WIDTH, 7) for _ in range(4)])
    parallel = copy.deepcopy(serial)
    z, target = torch.randn(16, WIDTH), torch.randn(16, WIDTH)
    for net, evaluate in (
        (serial, serial),
        (parallel, lambda z: parallel_evaluate(parallel, z, sweeps=4, batched=True)),
    ):
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (evaluate(z) - target).square().mean().backward()
            optimizer.step()
    for one, two in zip(serial.parameters(), parallel.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_trained_with_one_sweep_it_runs_with_any():
    net = Parallel(OptDNN("gd", [Dense(WIDTH, 7) for _ in range(4)]), sweeps=1)
    z = torch.randn(3, WIDTH)
    net(z).sum().backward()
    net.sweeps = 4
    torch.testing.assert_close(net(z), net.net(z), rtol=0, atol=1e-12)


class Scaled(Dense):
    def __init__(self, factor):
        super().__init__(WIDTH, 7)
        self.factor = factor

    def forward(self, z):
        return self.factor * super().forward(z)


def hooked():
    layer = Dense(WIDTH, 7)
    layer.inner.register_forward_hook(lambda module, inputs, output: None)
    return layer


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            lambda: [Dense(WIDTH, 7), Dense(WIDTH, 8)],
            r"weight of shape \(7, 5\) in one and \(8, 5\) in the other|out_feat",
        ),
        (lambda: [Dense(WIDTH, 7), Gentle()], "differ"),
        (lambda: [nn.Linear(5, 5), nn.Linear(5, 5, dtype=torch.float32)], "float64.* in one and .*float32"),
        (lambda: [Dense(WIDTH, 7), Dense(WIDTH, 7, activation=nn.Tanh())], "class .*ReLU.* in one and .*Tanh"),
        (lambda: [Scaled(1.0), Scaled(2.0)], "factor 1.0 in one and 2.0 in the other"),
        (lambda: [Dense(WIDTH, 7), hooked()], "Linear in layer 1 has hooks"),
        (lambda: [Dense(WIDTH, 7), Dense(WIDTH, 7).eval()], "training True in one and False"),
        (
            lambda: [nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH)],
            "BatchNorm1d in training changes its num_batches_tracked",
        ),
        (lambda: [torch.jit.script(nn.Linear(5, 5)) for _ in range(2)], "layer 0 was compiled by Torch"),
        (lambda: [nn.Sequential(nn.Linear(5, 5)), nn.Sequential(nn.Linear(5, 5), nn.ReLU())], "different submodules"),
    ],
    ids=[
        "shapes",
        "classes",
        "dtypes",
        "activations",
        "settings",
        "hooks",
        "training",
        "buffers",
        "scripts",
        "submodules",
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_transforms_that_are_not_alike_are_refused_with_the_difference_or_evaluated_one_by_one(layers, message):
    net, z = OptDNN("gd", layers()), torch.randn(3, WIDTH)
    with pytest.raises(UnlikeError, match=message):
        parallel_evaluate(net, z, sweeps=1, batched=True)
    if "float32" in message:
        return  # neither is it a network that can be evaluated serially
    for one_by_one in (None, False):
        torch.testing.assert_close(parallel_evaluate(net, z, sweeps=2, batched=one_by_one), net(z))


@pytest.mark.parametrize(("name", "newton"), [("gd", None), ("gd", Newton()), ("pdhg", None)])
def test_layers_that_are_not_alike_reach_the_tolerance_one_by_one(name, newton):
    pairs = [(Dense(WIDTH, hidden), Dense(WIDTH, hidden + 1)) for hidden in (3, 5, 7)]
    net = OptDNN(name, [pair if name == "pdhg" else pair[0] for pair in pairs])
    z = torch.randn(3, WIDTH, requires_grad=True)
    solution = parallel_evaluate(net, z, rtol=1e-9, newton=newton)
    torch.testing.assert_close(solution.value, net(z), rtol=0, atol=1e-8)
    torch.testing.assert_close(gradients(solution.value, net, z), gradients(net(z), net, z), rtol=1e-5, atol=1e-6)
    with pytest.raises(UnlikeError):
        parallel_evaluate(net, z, rtol=1e-9, batched=True)


class Branching(Dense):
    """Which torch.vmap cannot take."""

    def forward(self, z):
        return super().forward(z) if z.sum() > -1e9 else z


def test_what_vmap_cannot_take_is_evaluated_one_by_one():
    net, z = OptDNN("gd", [Branching(WIDTH, 7) for _ in range(20)]), torch.randn(3, WIDTH)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=20), net(z), rtol=0, atol=1e-10)
    torch.testing.assert_close(parallel_evaluate(net, z, rtol=1e-9, batched=False).value, net(z), rtol=0, atol=1e-7)
    with pytest.raises(RuntimeError, match="vmap"):
        parallel_evaluate(net, z, sweeps=20, batched=True)


def test_weights_at_large_norm_are_solved_in_a_stack():
    torch.manual_seed(0)
    layers = [(Dense(WIDTH, 7), MonotoneDense(WIDTH, 7, lipschitz=None)) for _ in range(4)]
    for _, proximal in layers:
        with torch.no_grad():
            proximal.linear.weight.mul_(10 / torch.linalg.matrix_norm(proximal.linear.weight, 2))
    net, z = OptDNN("pgd", layers, alpha=0.0, rtol=1e-9, max_steps=500), torch.randn(3, WIDTH)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=4, batched=True), net(z), rtol=1e-6, atol=1e-6)


def test_a_stack_of_modules_answers_as_each():
    modules, points = [Dense(WIDTH, 7) for _ in range(3)], torch.randn(3, 4, WIDTH)
    expected = torch.stack([module(point) for module, point in zip(modules, points, strict=True)])
    torch.testing.assert_close(Stack(modules)(points, ()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sweeps": 2, "rtol": 1e-3}, "pass one of them"),
        ({"sweeps": 7}, "must be an integer from 1"),
        ({}, "sweeps=None and rtol=None: pass one of them"),
        ({"sweeps": 2, "max_sweeps": 3}, "are for a tolerance"),
        ({"sweeps": 2, "solver": Anderson()}, "are for a tolerance"),
        ({"rtol": 1e-3, "max_sweeps": 0}, "max_sweeps=0 must be an integer of at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        parallel_evaluate(network("gd"), torch.zeros(1, WIDTH), **arguments)


@pytest.mark.parametrize("newton", [Newton(diagonal=True), Newton(damping=0.3), Newton(True, 0.5)], ids=repr)
@pytest.mark.parametrize("name", ONE_TRANSFORM)
def test_sweeps_that_follow_less_of_the_jacobians_reach_the_serial_network_too(name, newton):
    net, z = network(name), torch.randn(3, WIDTH, requires_grad=True)
    depth = len(net.transforms)
    exact = parallel_evaluate(net, z, sweeps=depth, newton=newton)
    torch.testing.assert_close(exact, net(z), rtol=0, atol=1e-9)
    solution = parallel_evaluate(net, z, rtol=1e-9, newton=newton)
    assert solution.converged.all()
    torch.testing.assert_close(gradients(solution.value, net, z), gradients(net(z), net, z), rtol=1e-3, atol=1e-4)


def test_diagonals_are_followed_exactly_where_jacobians_are_diagonal():
    class Diagonal(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(0.5 * torch.rand(WIDTH))

        def forward(self, z):
            return self.scale * z.sin()

    net, z = OptDNN("nesterov", [Diagonal() for _ in range(12)]), torch.randn(3, WIDTH)
    for sweeps in (1, 2, 3):
        full, diagonal = (parallel_evaluate(net, z, sweeps=sweeps, newton=Newton(one)) for one in (False, True))
        torch.testing.assert_close(diagonal, full, rtol=1e-10, atol=1e-12)


def test_newton_is_an_object():
    with pytest.raises(TypeError, match=r"newton=True: pass Newton\(\)"):
        parallel_evaluate(network("gd"), torch.zeros(1, WIDTH), sweeps=1, newton=True)


class Legacy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, z):
        return 0.5 * Sine.apply(self.linear(z))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, z):
        return checkpoint(lambda z: 0.3 * torch.tanh(self.linear(z)), z, use_reentrant=False)


@pytest.mark.parametrize("options", [{"sweeps": 17}, {"rtol": 1e-6}], ids=str)
@pytest.mark.parametrize("transform", [Legacy, Checkpointed])
def test_transforms_that_vmap_does_not_support_are_evaluated_one_by_one(transform, options):
    torch.manual_seed(0)
    net, z = OptDNN("gd", [transform() for _ in range(17)]), torch.randn(3, 6)
    found = parallel_evaluate(net, z, **options)
    found = found.value if "rtol" in options else found
    torch.testing.assert_close(found, net(z), rtol=1e-4, atol=1e-5)
    wanted = list(net.parameters())
    expected = torch.autograd.grad(net(z).sin().sum(), wanted)
    torch.testing.assert_close(torch.autograd.grad(found.sin().sum(), wanted), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("newton", [Newton(), Newton(diagonal=True, probes=2), Newton(damping=1.0)], ids=repr)
@pytest.mark.parametrize("batched", [None, False])
def test_newton_sweeps_over_transforms_that_are_not_alike(newton, batched):
    torch.manual_seed(0)
    net, z = OptDNN("gd", [Dense(6, 9), Dense(6, 12), Dense(6, 9)]), torch.randn(3, 6)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=3, newton=newton, batched=batched), net(z))
    with pytest.raises(UnlikeError):
        parallel_evaluate(net, z, sweeps=3, newton=newton, batched=True)


@pytest.mark.parametrize("options", [{"sweeps": 2}, {"rtol": 1e-3}], ids=str)
@pytest.mark.parametrize("batched", [None, False])
def test_newton_sweeps_over_what_cannot_be_differentiated_are_refused_in_words(batched, options):
    net = OptDNN("gd", [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(DEPTH)]).train()
    with pytest.raises(TypeError, match=r"writes into its buffers.*eval"):
        parallel_evaluate(net, torch.randn(2, 6), newton=Newton(), batched=batched, **options)
    net = OptDNN("gd", [Checkpointed() for _ in range(DEPTH)])
    with pytest.raises(TypeError, match=r"hooks on saved tensors.*newton=None"):
        parallel_evaluate(net, torch.randn(2, 6), newton=Newton(), batched=batched, **options)


@pytest.mark.parametrize("options", [{"sweeps": 2}, {"rtol": 1e-3}], ids=str)
@pytest.mark.parametrize("batched", [None, True, False])
def test_a_checkpoint_in_a_transform_refuses_the_batch_and_one_around_all_does_not(options, batched, monkeypatch):
    net, z = OptDNN("gd", [Checkpointed() for _ in range(DEPTH)]), torch.randn(2, 6)
    with pytest.raises(RuntimeError, match="pass batched=False"):
        parallel_evaluate(net, z, batched=True, **options)
    net = OptDNN("gd", [Dense(6, 9) for _ in range(DEPTH)])
    wanted = list(net.parameters())
    monkeypatch.setattr("models.parallel.evaluate._batching_pays", lambda z, depth: True)
    options = {"sweeps": DEPTH} if "sweeps" in options else {"rtol": 1e-9}

    def evaluated(z):
        found = parallel_evaluate(net, z, batched=batched, **options)
        return getattr(found, "value", found)

    value = checkpoint(evaluated, z, use_reentrant=False)
    found = torch.autograd.grad(value.sin().sum(), wanted)
    expected = torch.autograd.grad(net(z).sin().sum(), wanted)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"sweeps": 4}, {"rtol": 1e-9}], ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("depth", [1, 4])
def test_newtons_sweeps_over_tied_proximal_steps(depth, alpha, options):
    options = options if "rtol" in options else {"sweeps": depth}
    settings = {"rtol": 1e-11, "max_steps": 500, "gradient": EXACT}
    net = OptDNN("ppa", [MonotoneDense(6, 9)] * depth, alpha=alpha, **settings).double().eval()
    z = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    found = parallel_evaluate(net, z, newton=Newton(), **options)
    found = found.value if "rtol" in options else found
    torch.testing.assert_close(found, net(z), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(gradients(found, net, z), gradients(net(z), net, z), rtol=1e-5, atol=1e-6)


class Reads(TorchDispatchMode):
    """Counts what would make a GPU wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("equal", "_local_scalar_dense")
        return function(*args, **(kwargs or {}))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.register_buffer("mask", torch.arange(WIDTH) < 2)

    def forward(self, y):
        return self.norm(self.linear(y)) * self.mask


def test_buffers_of_integers_are_compared_once(monkeypatch):
    monkeypatch.setattr("models.parallel.repeats.same", lambda *_: True)  # states of generators are on the processor
    monkeypatch.setattr("models.parallel.likeness._waits", lambda tensor: True)
    net, z = OptDNN("gd", [Masked() for _ in range(DEPTH)]).eval(), torch.randn(3, WIDTH)
    expected = parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    torch.testing.assert_close(expected, net(z))
    with Reads() as reads:
        parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    assert reads.count == 0  # but one .tolist(), which tells whether guesses overflowed or went astray
    net.transforms[2].mask[0] = False
    with pytest.raises(UnlikeError, match="mask"):
        parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    moved = copy.deepcopy(net).to("meta")
    assert parallel_evaluate(moved, z.to("meta"), sweeps=DEPTH, batched=True).shape == z.shape


def test_integer_buffers_that_are_replaced_or_written_to_are_compared_again():
    net, z = OptDNN("gd", [Masked() for _ in range(DEPTH)]).eval(), torch.randn(3, WIDTH)
    parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
    for change in (lambda mask: mask.data.zero_(), lambda mask: setattr(mask, "data", torch.arange(WIDTH) < 4)):
        change(net.transforms[2].mask)
        torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), net(z))
        with pytest.raises(UnlikeError, match="mask"):
            parallel_evaluate(net, z, sweeps=DEPTH, batched=True)


class NothingRuns(TorchDispatchMode):
    """As in a CUDA capture: operations are noted, and fresh memory holds anything."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {place(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and place(leaf) not in known:
                leaf.detach().fill_(torch.nan)
        return result


def place(tensor):
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("learned", [True, False])
def test_a_capture_leaves_parameters_where_they_are_and_keeps_nothing_that_it_has_not_computed(monkeypatch, learned):
    method = GradientDescent()
    net = OptDNN(method.learned() if learned else method, [nn.Linear(WIDTH, WIDTH) for _ in range(4)])
    before, z = [parameter.data_ptr() for parameter in net.parameters()], torch.randn(3, WIDTH)
    starts_alike(net.method, net.coefficients)  # is found on the processor, whatever is captured
    with torch.no_grad():
        expected = parallel_evaluate(copy.deepcopy(net), z, sweeps=2, batched=True)
        for module in ("gather", "trajectory"):
            monkeypatch.setattr(f"models.parallel.{module}.captured", lambda tensor: True)
        with NothingRuns():
            parallel_evaluate(net, z, sweeps=2, batched=True)
        monkeypatch.undo()
        assert [parameter.data_ptr() for parameter in net.parameters()] == before
        torch.testing.assert_close(parallel_evaluate(net, z, sweeps=2, batched=True), expected)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, z):
        return self.dropout(0.5 * torch.tanh(self.linear(z)))


class Functional(Dropping):
    def forward(self, z):
        return nn.functional.dropout(0.5 * torch.tanh(self.linear(z)), 0.5, self.training)


@pytest.mark.parametrize("options", [{"sweeps": 6}, {"rtol": 1e-9}, {"sweeps": 6, "newton": Newton()}], ids=str)
@pytest.mark.parametrize("transform", [Dropping, Functional])
def test_sweeps_draw_the_masks_of_the_serial_network(transform, options):
    net, z = OptDNN("gd", [transform() for _ in range(6)]).double().train(), torch.randn(20, 4, dtype=torch.float64)
    wanted, found = list(net.parameters()), []
    for evaluate in (net, lambda z: parallel_evaluate(net, z, batched=False, **options)):
        torch.manual_seed(1)
        value = evaluate(z)
        value = value.value if isinstance(value, Solution) else value
        drawn = torch.rand(())  # the generator has moved on as once
        found.append((value, drawn, *torch.autograd.grad(value.square().sum(), wanted)))
        assert torch.equal(drawn, found[0][1])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)


def test_all_transforms_at_once_have_the_masks_of_one_network():
    net, z = OptDNN("gd", [Dropping() for _ in range(6)]).train(), torch.ones(50000, 4)
    with torch.no_grad():
        spread, found = net(z).std(0), parallel_evaluate(net, z, sweeps=6, batched=True).std(0)
    torch.testing.assert_close(found, spread, rtol=0.03, atol=0)  # masks drawn anew would raise it by up to 40 %


def test_dropout_in_a_capture_is_refused_in_words(monkeypatch):
    monkeypatch.setattr("models.parallel.repeats.captured", lambda tensor: True)
    with pytest.raises(RuntimeError, match=r"dropout cannot be captured.*eval\(\)"):
        parallel_evaluate(OptDNN("gd", [Dropping() for _ in range(3)]), torch.ones(2, 4), sweeps=2, batched=True)


@pytest.mark.parametrize("options", [{"sweeps": 20}, {"sweeps": 20, "batched": True}, {"rtol": 1e-10}], ids=str)
@pytest.mark.parametrize("kind", ["batch mean", "nodes of a graph", "attention over rows", "batch statistics"])
def test_tied_transforms_may_couple_the_rows_of_a_layer(kind, options):
    class Coupled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6, dtype=torch.float64)
            self.norm = nn.BatchNorm1d(6, track_running_stats=False, dtype=torch.float64)
            self.register_buffer("adjacency", torch.rand(8, 8, dtype=torch.float64) / 8)

        def forward(self, z):
            h = torch.tanh(self.linear(z))
            if kind == "batch mean":
                return 0.3 * (h - h.mean(0))
            if kind == "nodes of a graph":
                return 0.3 * self.adjacency @ h
            return 0.3 * (torch.softmax(h @ h.T, 1) @ h if kind == "attention over rows" else self.norm(h))

    net, z = OptDNN("gd", [Coupled()] * 20).eval(), torch.randn(8, 6, dtype=torch.float64)
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the rows of the cell depend on each other")
        for value in (net(z), parallel_evaluate(net, z, **options)):
            value = value.value if isinstance(value, Solution) else value
            found.append((value, *torch.autograd.grad(value.square().sum(), list(net.parameters()), allow_unused=True)))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(one.detach().abs().max()))


@pytest.mark.parametrize("options", [{"sweeps": 20}, {"rtol": 1e-10}], ids=str)
def test_running_statistics_are_updated_once(options):
    transforms = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()).double() for _ in range(20)]
    net, z = OptDNN("gd", transforms), torch.randn(8, 6, dtype=torch.float64)
    other = copy.deepcopy(net)
    net(z).sum().backward()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the rows of the cell depend on each other")
        value = parallel_evaluate(other, z, **options)
    (value.value if isinstance(value, Solution) else value).sum().backward()
    torch.testing.assert_close(dict(other.named_buffers()), dict(net.named_buffers()), rtol=1e-6, atol=1e-8)
    gradients = [[parameter.grad for parameter in each.parameters()] for each in (other, net)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batched", [None, True, False])
def test_vmap_around_sweeps(batched):
    net, z = OptDNN("gd", [Dropping() for _ in range(17)]).double().eval(), torch.randn(5, 3, 4, dtype=torch.float64)
    found = torch.vmap(lambda z: parallel_evaluate(net, z, sweeps=17, batched=batched))(z)
    torch.testing.assert_close(found, torch.stack([net(each) for each in z]), rtol=1e-10, atol=1e-12)

    def loss(parameters, z):
        return torch.func.functional_call(net, parameters, (z,)).square().sum()

    def swept(parameters, z):
        with torch.nn.utils.stateless._reparametrize_module(net, parameters):
            return parallel_evaluate(net, z, sweeps=17, batched=batched).square().sum()

    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    per_sample = (torch.vmap(torch.func.grad(each), in_dims=(None, 0))(parameters, z) for each in (swept, loss))
    torch.testing.assert_close(*per_sample, rtol=1e-8, atol=1e-10)


def test_parameters_that_processes_share_stay_shared():
    net, z = OptDNN("gd", [Dropping() for _ in range(6)]).share_memory(), torch.randn(3, 4)
    parallel_evaluate(net, z, sweeps=6, batched=True)
    assert all(parameter.is_shared() for parameter in net.parameters())


def test_parameters_that_are_parts_of_one_vector_stay_so():
    net, z = OptDNN("gd", [nn.Linear(4, 4) for _ in range(6)]), torch.randn(3, 4)
    vector = nn.utils.parameters_to_vector(net.parameters()).detach()
    nn.utils.vector_to_parameters(vector, net.parameters())
    before = parallel_evaluate(net, z, sweeps=6, batched=True)
    torch.testing.assert_close(before, net(z))
    vector += 0.1
    torch.testing.assert_close(nn.utils.parameters_to_vector(net.parameters()), vector)
    after = parallel_evaluate(net, z, sweeps=6, batched=True)
    torch.testing.assert_close(after, net(z))
    assert not torch.allclose(after, before)


class Overshooting(Dropping):
    """Its guesses go astray, the network does not."""

    def forward(self, z):
        return 0.1 * torch.tanh(self.linear(z)) - 1.5 * self.dropout(z)


class Remembering(Dropping):
    def forward(self, z):
        return checkpoint(super().forward, z, use_reentrant=False)


@pytest.mark.parametrize("transform", [Overshooting, Remembering])
def test_an_evaluation_that_is_done_otherwise_has_the_same_masks(transform):
    net, z = OptDNN("gd", [transform() for _ in range(20)]).double().train(), torch.randn(4, 4, dtype=torch.float64)
    found = []
    for grad in (False, True):
        torch.manual_seed(1)
        with torch.set_grad_enabled(grad):
            value = parallel_evaluate(net, z, sweeps=20).detach()
        found.append((value, torch.rand(())))
    torch.manual_seed(1)
    found.append((net(z).detach(), torch.rand(())))
    assert found[0][1] == found[1][1] == found[2][1]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-8, atol=1e-8)


class Rewired(nn.Module):
    """Its parts have another order, other names, another nesting, or share weights otherwise, in every second layer."""

    def __init__(self, kind, odd):
        super().__init__()
        self.first, self.last = (nn.Linear(6, 6, bias=False) for _ in range(2))
        if kind == "order of modules" and odd:
            self.last, self.first = self._modules.pop("last"), self._modules.pop("first")
        if kind == "order of parameters":
            for name in ("v", "w") if odd else ("w", "v"):
                self.register_parameter(name, nn.Parameter(torch.randn(6, 6)))
        if kind == "names":
            self.add_module("before" if odd else "after", nn.Tanh())
        if kind == "nothing in one place":
            self.before, self.after = (nn.Tanh(), None) if odd else (None, nn.Tanh())
        self.middle = nn.Linear(6, 6, bias=False)
        if kind == "shared weights":
            (self.last if odd else self.middle).weight = self.first.weight
        if kind == "shared modules":
            setattr(self, "last" if odd else "middle", self.first)

    def forward(self, z):
        before, after = getattr(self, "before", None), getattr(self, "after", None)
        h = self.middle(torch.relu(self.first(before(z) if before else z)))
        if hasattr(self, "w"):
            h = torch.tanh(h @ self.w) @ self.v
        h = self.last(torch.tanh(h))
        return 0.3 * (after(h) if after else h)


@pytest.mark.parametrize(
    "kind",
    [
        "order of modules",
        "order of parameters",
        "names",
        "nothing in one place",
        "shared weights",
        "shared modules",
    ],
)
def test_layers_that_are_put_together_differently_are_not_alike(kind):
    net = OptDNN("gd", [Rewired(kind, odd=place % 2) for place in range(16)]).double()
    z = torch.randn(5, 6, dtype=torch.float64)
    for options in ({"sweeps": 16}, {"rtol": 1e-10}):
        value = parallel_evaluate(net, z, **options)
        value = value.value if isinstance(value, Solution) else value
        torch.testing.assert_close(value, net(z), rtol=1e-8, atol=1e-8)
    with pytest.raises(UnlikeError, match=r"put together differently|different submodules|differ: (after|before)"):
        parallel_evaluate(net, z, sweeps=16, batched=True)


@pytest.mark.parametrize("options", [{"sweeps": 4}, {"rtol": 1e-9}], ids=str)
@pytest.mark.parametrize("where", ["step", "resolvent"])
def test_hooks_on_a_tied_proximal_step_are_run(where, options):
    (step,) = network("pgd", depth=1, learned=False).transforms
    net, z = copy.deepcopy(network("pgd", depth=4, learned=False)), torch.randn(3, WIDTH)
    net.transforms = nn.ModuleList([step] * 4)
    (step if where == "step" else step.resolvent).register_forward_hook(lambda module, args, out: 0.5 * out)
    value = parallel_evaluate(net, z, **options)
    value = value.value if isinstance(value, Solution) else value
    torch.testing.assert_close(value, net(z), rtol=1e-5, atol=1e-6)


class Updating(nn.Module):
    """Updates buffers in every way that training does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.ones(6))
        self.register_buffer("replaced", torch.zeros(6))
        self.register_buffer("expanded", torch.ones(6).expand(2, 6))
        self.register_buffer("mask", torch.ones(200, 200))
        self.recurrent = nn.GRUCell(6, 6)

    def forward(self, z):
        self.count += 1
        self.average.lerp_(z.detach().abs().mean(0) + 1, 0.1)
        self.replaced = self.replaced + 1
        h = self.linear(z) * self.expanded[0] / self.average.clone() + 0.01 * self.replaced
        return 0.3 * torch.tanh(self.recurrent(h * self.mask[0, 0], z))


@pytest.mark.parametrize("options", [{"sweeps": 6}, {"rtol": 1e-10}], ids=str)
def test_buffers_are_updated_as_by_the_serial_network(options):
    net, z = OptDNN("gd", [Updating() for _ in range(6)]).double().train(), torch.randn(5, 6, dtype=torch.float64)
    other = copy.deepcopy(net)
    places = {name: id(buffer) for name, buffer in other.named_buffers() if "replaced" not in name}
    value = parallel_evaluate(other, z, **options)
    value = value.value if isinstance(value, Solution) else value
    expected = net(z)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)
    pairs = (value, other), (expected, net)
    gradients = [torch.autograd.grad(x.sum(), list(each.parameters())) for x, each in pairs]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(dict(other.named_buffers()), dict(net.named_buffers()), rtol=1e-6, atol=1e-8)
    assert {name: id(buffer) for name, buffer in other.named_buffers() if "replaced" not in name} == places


@pytest.mark.parametrize("recurrent", [nn.GRU, nn.LSTM, nn.RNN])
def test_tied_transforms_without_rules_for_vmap_are_evaluated_one_by_one(recurrent):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = recurrent(4, 4, batch_first=True)

        def forward(self, z):
            return 0.3 * self.cell(z)[0]

    net, z = OptDNN("gd", [Recurrent()] * 16).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=16), net(z))
    torch.testing.assert_close(parallel_evaluate(net, z, rtol=1e-10).value, net(z), rtol=1e-8, atol=1e-8)


def test_vmap_over_networks_in_training_with_buffers():
    nets = [OptDNN("gd", [nn.Sequential(nn.Linear(4, 4), Constant())] * 3).double().train() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(nets)
    z = torch.randn(5, 4, dtype=torch.float64)

    class Swept(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, z):
            return parallel_evaluate(self.net, z, sweeps=3)

    swept = Swept(copy.deepcopy(nets[0]))
    named = [{f"net.{name}": value for name, value in each.items()} for each in (parameters, buffers)]
    found = torch.vmap(lambda *state: torch.func.functional_call(swept, state, (z,)))(*named)
    torch.testing.assert_close(found, torch.stack([net(z) for net in nets]))


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.rand(4))

    def forward(self, z):
        return z * self.mask


class Aliased(nn.Module):
    """A buffer and a view of it, and a flag that is set without being counted as a change."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("rows", torch.ones(2, 6))
        self.register_buffer("first", self.rows[0])
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def forward(self, z):
        if not self.ready:
            self.first.data.copy_(z.detach().abs().mean(0) + 1)
            self.ready.data.fill_(True)
        return 0.3 * torch.tanh(self.linear(z) / self.rows[0].clone())


@pytest.mark.parametrize("inference", [False, True])
def test_buffers_are_the_same_memory_afterwards(inference):
    net, z = OptDNN("gd", [Aliased() for _ in range(4)]).double().train(), torch.randn(5, 6, dtype=torch.float64)
    for transform in net.transforms:
        transform.first = transform.rows[0]  # conversion to double has parted them
    other = OptDNN("gd", [Aliased() for _ in range(4)]).double().train()
    other.load_state_dict(net.state_dict())
    for transform in other.transforms:
        transform.first = transform.rows[0]
    before = [(id(buffer), buffer.data_ptr()) for buffer in other.buffers()]
    with torch.inference_mode(inference):
        torch.testing.assert_close(parallel_evaluate(other, z, sweeps=4), net(z))
    torch.testing.assert_close(dict(other.named_buffers()), dict(net.named_buffers()))
    assert [(id(buffer), buffer.data_ptr()) for buffer in other.buffers()] == before


@pytest.mark.parametrize("kind", [ZeroDivisionError, UserWarning, type("Own", (Exception,), {})])
def test_whatever_a_transform_raises_within_vmap_it_is_evaluated_by_itself(kind, monkeypatch):
    class Suspicious(nn.Linear):
        def forward(self, z):
            if torch._C._functorch.is_batchedtensor(z):
                raise kind("vmap")
            return super().forward(z).tanh()

    monkeypatch.setattr("models.parallel.evaluate._batching_pays", lambda z, depth: True)
    net, z = OptDNN("gd", [Suspicious(6, 6) for _ in range(DEPTH)]), torch.randn(2, 6)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), net(z), rtol=1e-5, atol=1e-6)
    with pytest.raises(kind):
        parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
