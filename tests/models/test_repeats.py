"""Evaluations in parallel over depth repeat one another: buffers, draws and weights are those of the serial network."""

import copy
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from implicit import Equilibrium, ImplicitGradient
from models import ContractiveDense, Newton, OptDNN, Parallel, parallel_evaluate, unroll
from models.parallel.copies import SMALL
from solvers import Solution

BATCH, WIDTH, DEPTH = 5, 6, 4
OPTIONS = [{"sweeps": DEPTH}, {"rtol": 1e-11}]
by_options = pytest.mark.parametrize("options", OPTIONS, ids=["sweeps", "tolerance"])


class Normalised(nn.Module):
    """Batch normalisation."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, z):
        return torch.tanh(self.norm(self.linear(z)))


class Averaged(nn.Module):
    """Updates a buffer in one of several ways, and multiplies with it afterwards."""

    def __init__(self, way):
        super().__init__()
        self.linear, self.way = nn.Linear(WIDTH, WIDTH), way
        self.register_buffer("average", torch.ones(WIDTH))
        self.register_buffer("front", self.average[: WIDTH // 2])
        self.again = self.average
        self.register_buffer("never", None)

    def forward(self, z):
        h = self.linear(z)
        if self.training:
            mean = h.detach().mean(0)
            if self.way == "in place":
                self.average.lerp_(mean, 0.1)
            elif self.way == "by data":
                self.average.data.lerp_(mean, 0.1)
            elif self.way == "through a view":
                self.front.lerp_(mean[: WIDTH // 2], 0.1)
            elif self.way == "through an attribute":
                self.again.mul_(0.9)
            else:
                self.average = self.average.lerp(mean, 0.1)
                self.again, self.front = self.average, self.average[: WIDTH // 2]
        return torch.tanh(h * self.average + self.again)


class Growing(nn.Module):
    """Gives its buffer other data, of another size."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("seen", torch.zeros(1, WIDTH))

    def forward(self, z):
        h = torch.tanh(self.linear(z))
        self.seen.data = torch.cat((self.seen, h.detach()[:1]))
        return h + 0.1 * self.seen.mean(0)


class Resized(nn.Module):
    """Resizes its buffer to the batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.ones(1, WIDTH))

    def forward(self, z):
        if len(self.scale) != len(z):
            self.scale.resize_(len(z), WIDTH).fill_(0.5)
        return torch.tanh(self.linear(z)) * self.scale.clone()


class Inferred(nn.Module):
    """Counts in inference mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        with torch.inference_mode():
            self.register_buffer("count", torch.zeros(2))

    def forward(self, z):
        with torch.inference_mode():
            self.count.add_(1)
        return torch.tanh(self.linear(z))


class First(nn.Module):
    """Keeps its first input's mean."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", None)

    def forward(self, z):
        if self.mean is None:
            self.mean = z.detach().mean(0)
        return torch.tanh(self.linear(z - self.mean))


class Lazy(nn.Module):
    """Makes its statistics at the first call."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d()

    def forward(self, z):
        return torch.tanh(self.norm(self.linear(z)))


class Masked(nn.Module):
    """Reads a constant buffer."""

    def __init__(self, mask=None):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.ones(WIDTH) if mask is None else mask)

    def forward(self, z):
        return torch.tanh(self.linear(z) * self.mask)


class Spectral(nn.Module):
    """Normalised by an estimate that each access improves."""

    def __init__(self):
        super().__init__()
        self.linear = spectral_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, z):
        return torch.tanh(self.linear(z))


WAYS = ["in place", "by data", "through a view", "through an attribute", "by assignment"]
KINDS = {way: lambda way=way: Averaged(way) for way in WAYS}
KINDS |= {"batch normalisation": Normalised, "masked": Masked, "spectral norm": Spectral, "set at first": First}
KINDS |= {"growing": Growing, "resized": Resized, "in inference mode": Inferred}


def network(make, depth=DEPTH):
    torch.manual_seed(3)
    return OptDNN("gd", [make() for _ in range(depth)]).train(), torch.randn(BATCH, WIDTH)


def value(net, z, options):
    found = parallel_evaluate(net, z, **options)
    return found.value if isinstance(found, Solution) else found


def buffers(net):
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def gradients(output, net, z, **options):
    tensors = [z, *net.parameters()]
    return torch.autograd.grad(output.square().sum(), tensors, allow_unused=True, materialize_grads=True, **options)


@pytest.mark.parametrize("kind", KINDS)
@by_options
def test_values_gradients_and_buffers_are_the_serial_networks(kind, options):
    net, z = network(KINDS[kind])
    net(z) if kind == "through a view" else None  # whichever state they are in
    other, w = copy.deepcopy(net), z.clone().requires_grad_()
    z.requires_grad_()
    for _ in range(2):
        expected, found = other(w), value(net, z, options)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradients(found, net, z), gradients(expected, other, w), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(buffers(net), buffers(other), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("way", WAYS[:4])
@pytest.mark.parametrize("sweeps", range(1, DEPTH))
def test_gradients_are_those_of_the_sweeps_whose_buffers_were_updated_on_the_way(way, sweeps):
    net, z = network(KINDS[way])
    other = copy.deepcopy(net)
    z.requires_grad_()
    found = gradients(parallel_evaluate(net, z, sweeps=sweeps), net, z)
    (start,) = {tuple(each.average.tolist()) for each in other.transforms}
    outputs = [torch.zeros_like(z)] * DEPTH
    for _ in range(sweeps):  # z_{k+1} = z_k + t_k, each layer at the point that the last sweep gives
        points = [z + sum(outputs[:k], torch.zeros_like(z)) for k in range(DEPTH)]
        for each in other.transforms:
            each.average = each.again = torch.tensor(start, dtype=z.dtype)
            each.front = each.average[: WIDTH // 2]
        steps = [other.coefficients.at(k).step for k in range(DEPTH)]
        outputs = [step * each(y) for each, y, step in zip(other.transforms, points, steps, strict=True)]
    expected = gradients(z + sum(outputs), other, z)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_buffers_stay_what_they_are_for_those_who_hold_them():
    net, z = network(Normalised)
    held = dict(net.named_buffers())
    parallel_evaluate(net, z, sweeps=3)
    assert all(buffer is held[name] for name, buffer in net.named_buffers())
    assert all(int(buffer) == 1 for name, buffer in held.items() if name.endswith("tracked"))


@by_options
def test_lazy_networks_update_once_in_their_first_call(options):
    (net, z), (other, _) = network(Lazy), network(Lazy)
    torch.manual_seed(0)
    found = value(net, z, options)
    torch.manual_seed(0)
    torch.testing.assert_close(found, other(z), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(buffers(net), buffers(other), rtol=1e-9, atol=1e-9)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("again", ["create_graph", "save_on_cpu"])
@pytest.mark.parametrize("kind", ["batch normalisation", "in place", "by assignment"])
@by_options
def test_backward_passes_leave_buffers_alone(again, kind, options):
    net, z = network(KINDS[kind])
    z.requires_grad_()
    with save_on_cpu() if again == "save_on_cpu" else torch.enable_grad():
        real = value(net, z, options)
    value(net, z + 1, options)
    with torch.no_grad():
        for buffer in net.buffers():
            buffer.fill_(7)
    gradients(real, net, z, create_graph=again == "create_graph")
    assert all(bool((buffer == 7).all()) for buffer in net.buffers())


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_what_is_only_read_is_not_written(tmp_path):
    np.save(tmp_path / "mask.npy", np.ones(WIDTH))
    mask = torch.from_numpy(np.load(tmp_path / "mask.npy", mmap_mode="r"))
    net, z = network(lambda: Masked(mask))  # writing to it would end the process
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), net(z))
    net, z = network(Masked)
    before = [buffer._version for buffer in net.buffers()]
    parallel_evaluate(net, z, sweeps=DEPTH)
    assert before == [buffer._version for buffer in net.buffers()]


@pytest.mark.parametrize("kind", ["masked", "spectral norm", "contractive"])
def test_networks_in_training_whose_buffers_hold_still_take_newton_and_transforms(kind):
    make = KINDS.get(kind, lambda: ContractiveDense(WIDTH, 8))
    net, z = network(make)
    expected = copy.deepcopy(net)(z)
    for options in OPTIONS:
        found = value(copy.deepcopy(net), z, options | {"newton": Newton()})
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    if kind == "masked":
        slope = torch.func.grad(lambda z: parallel_evaluate(net, z, sweeps=DEPTH).square().sum())(z)
        torch.testing.assert_close(slope, torch.func.grad(lambda z: net(z).square().sum())(z))


def test_compiled_networks_update_once():
    net, z = network(Normalised)
    other = copy.deepcopy(net)
    compiled = torch.compile(Parallel(net, sweeps=DEPTH), backend="eager")
    torch.testing.assert_close(compiled(z), other(z))
    torch.testing.assert_close(buffers(net), buffers(other))


def test_large_buffers_are_not_copied():
    mask = torch.ones(SMALL // 8 + 1, dtype=torch.float64)[:WIDTH]
    net, z = network(lambda: Masked(mask))
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH), net(z))


def test_failures_leave_the_buffers_in_place():
    class Failing(Averaged):
        def forward(self, z):
            found = super().forward(z)
            if len(z) == 3:
                raise ArithmeticError("three rows")
            return found

    net, z = network(lambda: Failing("in place"))
    held = dict(net.named_buffers())
    with pytest.raises(ArithmeticError):
        parallel_evaluate(net, z[:3], sweeps=2)
    assert all(buffer is held[name] for name, buffer in net.named_buffers())
    parallel_evaluate(net, z, sweeps=2)


def test_recurrent_cells_draw_and_update_once():
    torch.manual_seed(0)
    cell = spectral_norm(nn.RNNCell(3, WIDTH), "weight_hh")
    x, h = torch.randn(2, 4, 3), torch.zeros(2, WIDTH).requires_grad_()
    found = unroll(cell, x, h, rtol=1e-11)
    before = buffers(cell)
    first = torch.autograd.grad(found.value.square().sum(), h, create_graph=True)[0]
    second = torch.autograd.grad(unroll(cell.eval(), x, h, rtol=1e-11).value.square().sum(), h)[0]
    torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(buffers(cell), before)


def test_threads_that_share_a_network_do_not_lose_its_buffers():
    import threading

    net, z = network(Normalised)
    held = dict(net.named_buffers())
    threads = [threading.Thread(target=parallel_evaluate, args=(net, z), kwargs={"sweeps": 3}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(buffer is held[name] for name, buffer in net.named_buffers())
    tracked = {name: int(buffer) for name, buffer in held.items() if name.endswith("tracked")}
    assert all(1 <= count <= 4 for count in tracked.values())


def test_draws_repeat():
    net, z = network(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), nn.Tanh()))
    values = []
    for sweeps in (DEPTH - 1, DEPTH, DEPTH):
        torch.manual_seed(1)
        values.append(parallel_evaluate(net, z, sweeps=sweeps))
    assert all(not torch.equal(*pair) or number for number, pair in enumerate(pairwise(values)))
    assert torch.equal(values[1], values[2])


class Counting(nn.Module):
    """Counts, keeps and draws beside a lazy module."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.seen = nn.LazyLinear(WIDTH), nn.BatchNorm1d(WIDTH), []
        self.generator = torch.Generator().manual_seed(0)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, z):
        self.seen.append(1.0)
        self.count += 1
        noise = torch.rand((), generator=self.generator) + random.random()
        return torch.tanh(self.norm(self.linear(z))) * noise / (len(self.seen) + self.count)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@by_options
def test_what_is_beside_lazy_modules_is_evaluated_once(options, train):
    (net, z), (other, _) = network(Counting), network(Counting)
    net.train(train), other.train(train)
    values = []
    for each in (lambda: other(z), lambda: value(net, z, options)):
        torch.manual_seed(0)
        random.seed(0)
        values.append((each(), random.random()))
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(buffers(net), buffers(other), rtol=1e-9, atol=1e-9)
    for one, two in zip(net.transforms, other.transforms, strict=True):
        assert one.seen == two.seen == [1.0]
        assert torch.equal(one.generator.get_state(), two.generator.get_state())


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@by_options
def test_gradients_with_a_graph_are_those_at_the_weights_of_the_call(options, batched, copied):
    net, z = network(Spectral)
    net = copy.deepcopy(net) if copied else net
    z.requires_grad_()
    other = copy.deepcopy(net)
    expected = gradients(other(z), other, z, create_graph=True)
    again = gradients(sum(each.square().sum() for each in expected), other, z)
    output = value(net, z, options | {"batched": batched})
    before = buffers(net)
    found = gradients(output, net, z, create_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gradients(sum(each.square().sum() for each in found), net, z), again)
    torch.testing.assert_close(buffers(net), before, rtol=0, atol=0)


class Drawn(nn.Module):
    """Counts, keeps and draws in whatever way as it computes a weight."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen = 0, []
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("grown", torch.zeros(1))
        self.register_buffer("unnoticed", torch.zeros(1))

    def forward(self, weight):
        self.grown.resize_(len(self.grown) + 1).fill_(0)
        self.unnoticed.data.add_(1)
        self.calls += 1
        self.seen.append(0)
        self.count += 1
        self.total = self.total + 1
        return weight * (1 + 0.1 * random.random()) * F.dropout(torch.ones_like(weight), 0.1, training=True)


class Parametrized(Spectral):
    fails = iter(())

    def __init__(self, make):
        super().__init__()
        if make is not None:
            parametrize.register_parametrization(self.linear, "bias", make())

    def forward(self, z):
        if next(self.fails, False):
            raise ArithmeticError
        return super().forward(z)


@pytest.mark.parametrize("make", [None, Drawn], ids=["spectral", "drawn"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("evaluations", [0, 2, DEPTH + 1])
@by_options
def test_failures_leave_what_parametrizations_keep_and_draw(options, evaluations, batched, train, make, monkeypatch):
    net, z = network(lambda: Parametrized(make))
    net.train(train)
    state = lambda: (  # noqa: E731
        copy.deepcopy([vars(module) for module in net.modules() if isinstance(module, Drawn)]),
        buffers(net), torch.get_rng_state(), random.getstate(),
    )  # fmt: skip
    before = state()
    monkeypatch.setattr(
        Parametrized, "fails", iter([False] * (evaluations % DEPTH if batched else evaluations) + [True])
    )
    with pytest.raises(ArithmeticError):
        value(net, z, options | {"batched": batched})
    for one, two in zip(before, state(), strict=True):
        assert str(one) == str(two)


def test_large_tensors_that_parametrizations_only_read_are_not_copied(monkeypatch):
    class Pruned(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(SMALL))

        def forward(self, weight):
            return weight * self.mask[: weight.numel()].view_as(weight)

    net, z = network(lambda: Parametrized(Pruned))
    clone, copied = torch.Tensor.clone, []
    for train in (True, False):
        net.train(train)
        with torch.no_grad():
            parallel_evaluate(net, z, sweeps=2)
            monkeypatch.setattr(torch.Tensor, "clone", lambda x, **form: copied.append(x.numel()) or clone(x, **form))
            parallel_evaluate(net, z, sweeps=2)
            monkeypatch.undo()
    assert copied
    assert max(copied) < SMALL


def test_failures_leave_the_graphs_of_earlier_calls():
    class Masking(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(WIDTH, WIDTH))

        def forward(self, weight):
            return weight * self.mask

    class Pruned(Parametrized):
        def __init__(self):
            super().__init__(None)
            self.linear = nn.Linear(WIDTH, WIDTH)
            parametrize.register_parametrization(self.linear, "weight", Masking())

    net, z = network(Pruned)
    earlier = net(z)
    for each in net.transforms:
        each.fails = iter([True])
    with pytest.raises(ArithmeticError):
        parallel_evaluate(net, z, sweeps=2)
    earlier.sum().backward()


def as_it_is(module):
    """No other class."""


def mixed_in(module):
    module.__class__ = type("Mixed", (Mixin, type(module)), {})


def mixed_in_behind(module):
    module.__class__ = type("Mixed", (type(module), Mixin), {})


class Mixin:
    """What a class may be given later, as for sharded parameters."""


@pytest.mark.parametrize("extend", [as_it_is, mixed_in, mixed_in_behind])
@pytest.mark.parametrize("make", [weight_norm, spectral_norm, orthogonal])
def test_deep_copies_have_weights_of_their_own(make, extend):
    """They would share one in PyTorch's cache."""
    torch.manual_seed(0)
    first = nn.Sequential(make(nn.Linear(WIDTH, WIDTH)), nn.Tanh()).eval()
    extend(first[0])
    layers = [copy.deepcopy(first) for _ in range(DEPTH)]
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    z = torch.randn(BATCH, WIDTH)
    expected = z
    for layer in layers:
        expected = expected + layer(expected)
    net = OptDNN("gd", layers)
    torch.testing.assert_close(net(z), expected)
    for newton in (None, Newton()):
        torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH, newton=newton), expected)
    torch.testing.assert_close(parallel_evaluate(net, z, sweeps=DEPTH, batched=True), expected)
    assert len({type(layer[0]) for layer in layers}) == DEPTH
    if extend is as_it_is:
        assert all(parametrize.type_before_parametrizations(layer[0]) is nn.Linear for layer in layers)
        weight = layers[1][0].weight
        parametrize.remove_parametrizations(layers[1][0], "weight")
        assert type(layers[1][0]) is nn.Linear
        torch.testing.assert_close(layers[1][0].weight, weight)
    again = OptDNN("gd", [copy.deepcopy(layers[2]) for _ in range(2)])
    torch.testing.assert_close(again(z), z + layers[2](z) + layers[2](z + layers[2](z)))


def test_lyapunov_exponents_are_those_of_the_weights_of_now():
    torch.manual_seed(0)
    cell = weight_norm(nn.RNNCell(3, WIDTH), "weight_hh")
    x, h = torch.randn(2, 6, 3), torch.zeros(2, WIDTH)
    found = unroll(cell, x, h, rtol=1e-11)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(2)
    weight, bias = cell.weight_hh, cell.bias_hh + cell.bias_ih
    states = torch.cat((h[:, None], found.value[:, :-1]), dim=1).detach()
    for row in range(2):
        direction, total = torch.ones(WIDTH) / WIDTH**0.5, 0.0
        for state, given in zip(states[row], x[row], strict=True):
            slope = 1 - torch.tanh(cell.weight_ih @ given + weight @ state + bias) ** 2
            direction = (slope * (weight @ direction)).detach()
            total += float(direction.norm().log())
            direction = direction / direction.norm()
        assert float(found.lyapunov_exponent()[row]) == pytest.approx(total / 6, rel=1e-9)


@pytest.mark.parametrize("extend", [as_it_is, mixed_in, mixed_in_behind])
def test_parametrized_classes_may_be_extended(extend):
    torch.manual_seed(0)
    layer = nn.Sequential(weight_norm(nn.Linear(WIDTH, WIDTH)), nn.Tanh())
    extend(layer[0])
    z = torch.randn(BATCH, WIDTH).requires_grad_()
    net, tied = OptDNN("gd", [layer]), OptDNN("gd", [layer] * 2)
    for each in (net, tied):
        expected = gradients(each(z), each, z)
        for batched in (False, True):
            found = parallel_evaluate(each, z, sweeps=len(each.transforms), batched=batched)
            torch.testing.assert_close(gradients(found, each, z), expected)
    equilibrium = Equilibrium(Injected(layer), rtol=1e-10, gradient=ImplicitGradient(rtol=1e-10))
    state = torch.zeros_like(z)
    for _ in range(100):
        state = equilibrium.cell(state, z)
    expected = gradients(state, equilibrium, z)
    torch.testing.assert_close(gradients(equilibrium(z), equilibrium, z), expected, rtol=1e-6, atol=1e-8)
    found = gradients(equilibrium(z), equilibrium, z, create_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


class Injected(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, z, x):
        return 0.3 * self.layer(z) + x


class Renamed(nn.Module):
    """Puts an equal key of another class in a key's place."""

    def __init__(self):
        super().__init__()
        self.linear, self.kept = nn.Linear(WIDTH, WIDTH), {1: torch.zeros(WIDTH)}

    def forward(self, z):
        self.kept[1.0] = self.kept.pop(1) + 1
        if len(z) == 3:
            raise ArithmeticError("three rows")
        return torch.tanh(self.linear(z))


@by_options
def test_failures_leave_keys_as_they_are(options):
    net, z = network(Renamed)
    with pytest.raises(ArithmeticError):
        value(net, z[:3], options)
    assert [str(key) for layer in net.transforms for key in layer.kept] == ["1"] * DEPTH
    value(net, z, options)
    assert [str(key) for layer in net.transforms for key in layer.kept] == ["1.0"] * DEPTH


class Appending(nn.Module):
    """Keeps a number for each call, in a buffer that is empty at first."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("means", torch.zeros(0))

    def forward(self, z):
        found = torch.tanh(self.linear(z))
        self.means.resize_(len(self.means) + 1)[-1] = found.detach().mean()
        return found


@by_options
def test_empty_buffers_grow_each_for_itself(options):
    (net, z), (other, _) = network(Appending), network(Appending)
    for _ in range(2):
        torch.testing.assert_close(value(net, z, options), other(z), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(buffers(net), buffers(other), rtol=1e-9, atol=1e-9)


class Kept(nn.Module):
    """Keeps its output, through what torch.func does not follow."""

    def __init__(self, way):
        super().__init__()
        self.linear, self.norm, self.way, self.last = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), way, None

    def forward(self, z):
        if self.way == "checkpoint":
            self.last = checkpoint(lambda y: torch.tanh(self.linear(y)), z, use_reentrant=False)
        else:
            self.last = torch.tanh(self.norm(self.linear(z)))
        return self.last


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("way", ["checkpoint", "batch normalisation"])
@by_options
def test_newton_without_gradients_follows_what_torch_func_does_not(way, train, without, options):
    net, z = network(lambda: Kept(way))
    other = copy.deepcopy(net.train(train))
    with without():
        found, expected = value(net, z, options | {"newton": Newton()}), other(z)
    torch.testing.assert_close(found.clone(), expected.clone(), rtol=1e-8, atol=1e-8)
    for one, two in zip(net.transforms, other.transforms, strict=True):
        assert not one.last.requires_grad
        torch.testing.assert_close(one.last.clone(), two.last.clone(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(buffers(copy.deepcopy(net)), buffers(other), rtol=1e-9, atol=1e-9)
