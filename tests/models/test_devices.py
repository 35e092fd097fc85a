"""Networks on devices: what a GPU's kernels refuse does not come up, nothing stays behind, sweeps read nothing."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from models import METHODS, Newton, OptDEQ, OptDNN, ParaFormer, parallel_evaluate
from models.blocks import attention, convnext, convolutional, dense
from models.mdeq import MDEQ
from models.mondeq import mondeq
from models.parallel.sweeps import NewtonSweep, Sweep
from tests.moving import left_behind

SHAPES = {
    "dense": (lambda: dense(6, 8), (6,)),
    "convolutional": (lambda: convolutional(4, 6), (4, 4, 4)),
    "convnext": (lambda: convnext(4, 6), (4, 4, 4)),
    "attention": (lambda: attention(6, 8), (5, 6)),
}
DEPTH = 2
by_method = pytest.mark.parametrize("name", METHODS)
by_blocks = pytest.mark.parametrize("blocks", SHAPES)
by_batch = pytest.mark.parametrize("batch", [1, 4])


def network(name, blocks, *, alpha=1.0, learned=True, depth=DEPTH):
    """And the shape of a row of its states."""
    make, shape = SHAPES[blocks]
    method = METHODS[name].learned() if learned else METHODS[name]
    return OptDNN(method, [method.layer(make()) for _ in range(depth)], alpha=alpha), shape


def swept(net, z, sweeps):
    """Without the reading at the end."""
    sweep, outputs = Sweep(net, z, ()), None
    for _ in range(sweeps):
        outputs = sweep(outputs)
    return sweep.trajectory.last(z, outputs)


# --- without values ----------------------------------------------------------------------------------------------


@by_method
@by_blocks
@by_batch
def test_networks_moved_to_a_device_without_values_run_there_forward_and_backward(name, blocks, batch):
    run_without_values(*network(name, blocks), batch)


@by_method
def test_so_do_those_of_fixed_coefficients(name):
    run_without_values(*network(name, "dense", learned=False), 4)


def run_without_values(net, shape, batch):
    net.eval().to("meta")  # a tensor that stays behind raises where it meets another
    z = torch.randn(batch, *shape, device="meta", requires_grad=True)
    for evaluate in (
        net,
        lambda z: parallel_evaluate(net, z, sweeps=1, batched=True),
        lambda z: parallel_evaluate(net, z, sweeps=2, batched=True),
        lambda z: parallel_evaluate(net, z, sweeps=2, batched=False),
    ):
        output = evaluate(z)
        grads = torch.autograd.grad(output.square().sum(), [z, *net.parameters()], allow_unused=True)
        assert output.shape == z.shape
        assert output.device.type == "meta"
        assert all(grad is None or grad.device.type == "meta" for grad in grads)


@by_blocks
@by_batch
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.is_proximal])
def test_so_do_the_cells_of_proximal_steps(name, blocks, batch, alpha):
    net, shape = network(name, blocks, alpha=alpha)
    net.eval().to("meta")
    z = torch.randn(batch, *shape, device="meta", requires_grad=True)
    for step in net.transforms:
        v = z if step.smooth is None else z + step.smooth(z)
        image = step.resolvent.cell(z, v, z)
        (grad,) = torch.autograd.grad(image.sum(), z)
        assert image.device.type == grad.device.type == "meta"


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.has_equilibrium])
@by_blocks
@by_batch
def test_so_do_the_cells_of_equilibria(name, blocks, batch):
    make, shape = SHAPES[blocks]
    method = METHODS[name].frozen()
    net = OptDEQ(method, method.tied(make())).to("meta")
    x = torch.randn(batch, *shape, device="meta", requires_grad=True)
    state = net.equilibrium.cell(net._start(x), x)
    for part in state if isinstance(state, tuple) else (state,):
        assert part.device.type == "meta"


@by_batch
def test_newton_sweeps_read_nothing(batch):
    net, shape = network("nesterov", "dense")
    net.to("meta")
    z = torch.randn(batch, *shape, device="meta", requires_grad=True)
    sweep = NewtonSweep(net, z, (), Newton())
    output = sweep.trajectory.last(z, sweep(sweep(None)))
    assert torch.autograd.grad(output.sum(), z)[0].device.type == "meta"


@pytest.mark.parametrize("batched", [None, True, False])
@by_batch
@pytest.mark.parametrize("branches", [None, 2])
def test_para_formers_run_there_in_every_form(batched, batch, branches):
    model = ParaFormer(
        image_size=8, patch_size=4, channels=1, classes=3, branches=3, depth=2, width=6, heads=2, hidden=8
    ).to("meta")
    model.batched = batched
    images = torch.randn(batch, 1, 8, 8, device="meta")
    output = model(images, branches=branches)
    output.sum().backward()
    assert output.shape == (batch, 3)
    assert model.prefixes(images).shape == (3, batch, 3)
    assert all(parameter.grad.device.type == "meta" for parameter in model.parameters() if parameter.grad is not None)


# --- as on a GPU -------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_cuda(monkeypatch):
    """Tensors that say they are on a GPU, without one: forward passes alone, and no number can be asked for."""
    for method in METHODS.values():  # they are checked by numbers, on the processor
        monkeypatch.setattr(type(method), "_check", lambda self, c: None)
    monkeypatch.setattr("models.parallel.trajectory.starts_alike", lambda method, coefficients: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with FakeTensorMode(), torch.device("cuda"):
        yield


@by_method
@by_blocks
def test_networks_run_on_what_says_it_is_a_gpu(name, blocks, fake_cuda):
    net, shape = network(name, blocks)
    z = torch.randn(1, *shape)
    with torch.no_grad():
        for output in (net(z), swept(net, z, 2)):
            assert output.device.type == "cuda"
            assert output.shape == z.shape


@pytest.mark.parametrize("batched", [None, False])
@by_batch
def test_para_formers_run_on_what_says_it_is_a_gpu(batched, batch, fake_cuda):
    model = ParaFormer(image_size=8, patch_size=4, channels=1, classes=3, branches=3, width=6, heads=2, hidden=8)
    model.batched = batched
    with torch.no_grad():
        assert model(torch.randn(batch, 1, 8, 8)).device.type == "cuda"


# --- kernels -----------------------------------------------------------------------------------------------------

FUSED = "scaled_dot_product_", "flash_attention", "efficient_attention"
"""Kernels of attention for which `torch.vmap` has no rule: on a GPU its way round them fails in backward passes."""
WHOLE = "native_multi_head_attention", "encoder_layer"
"""Those of whole modules, which have none either."""


class Kernels(TorchDispatchMode):
    """Every kernel that runs, and whether a GPU would have taken what it was given.

    Args:
        rows: of a batch of all layers, which those of attention must get.
    """

    def __init__(self, rows):
        super().__init__()
        self.seen, self.refused, self.rows = set(), [], rows

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen.add(name)
        if any(fused in name for fused in FUSED) and (args[0].ndim != 4 or len(args[0]) != self.rows):
            self.refused.append(f"{name} of {tuple(args[0].shape)}")
        if any(whole in name for whole in WHOLE):
            self.refused.append(name)
        if name.startswith("native_group_norm"):  # "Expected X.is_contiguous(memory_format)"
            x = args[1] if name.endswith("backward") else args[0]
            if not x.is_contiguous():
                self.refused.append(f"{name} of strides {x.stride()}")
        return func(*args, **(kwargs or {}))


@contextmanager
def kernels(rows, *expected):
    with Kernels(rows) as mode:
        yield
    assert not mode.refused
    assert set(expected) <= mode.seen


@by_method
@by_blocks
@by_batch
@pytest.mark.parametrize("training", [False, True])
def test_sweeps_use_no_kernel_that_a_gpu_refuses(name, blocks, batch, training):
    net, shape = network(name, blocks)
    net.train(training)
    z = torch.randn(batch, *shape, requires_grad=True)
    normalised = blocks == "convolutional" and name != "ppa"  # which is made of a proximal part alone
    attended = blocks == "attention" and name != "ppa"
    with kernels(
        DEPTH * batch,
        *(["native_group_norm", "native_group_norm_backward"] if normalised else []),
        *(["_scaled_dot_product_flash_attention_for_cpu"] if attended else []),
    ):
        for sweeps in (1, 2):
            parallel_evaluate(net, z, sweeps=sweeps, batched=True).square().sum().backward()
    with kernels(DEPTH * batch), torch.no_grad():
        parallel_evaluate(net, z, sweeps=2, batched=True)


class Mixing(nn.Module):
    """A transform with attention and a transformer layer of PyTorch's own."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, z):
        return self.layer(self.attention(z, z, z, need_weights=False)[0])


@by_batch
@pytest.mark.parametrize("training", [False, True])
def test_nor_do_those_over_pytorchs_own_transformer(batch, training):
    net = OptDNN("gd", [Mixing() for _ in range(DEPTH)]).train(training)
    z = torch.randn(batch, 5, 6, requires_grad=True)
    with kernels(DEPTH * batch):
        output = parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
        output.square().sum().backward()
    with kernels(DEPTH * batch), torch.no_grad():
        parallel_evaluate(net, z, sweeps=2, batched=True)
    torch.testing.assert_close(output, net(z), rtol=1e-10, atol=1e-10)


@by_batch
def test_nor_do_newtons_sweeps(batch):
    for blocks in ("convolutional", "attention"):
        net, shape = network("gd", blocks)
        z = torch.randn(batch, *shape, requires_grad=True)
        with kernels(DEPTH * batch):
            parallel_evaluate(net, z, sweeps=2, newton=Newton()).square().sum().backward()


# --- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", ["cuda"])
@pytest.mark.parametrize("name", ["gd", "nesterov", "pdhg"])
@by_blocks
@by_batch
def test_sweeps_can_be_captured_in_a_graph(name, blocks, batch):
    net, shape = network(name, blocks)
    z = torch.randn(batch, *shape)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(side):
            for _ in range(2):
                parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = parallel_evaluate(net, z, sweeps=DEPTH, batched=True)
        z.copy_(torch.randn(batch, *shape))
        graph.replay()
        torch.testing.assert_close(output, net(z), rtol=1e-8, atol=1e-8)
        z.fill_(torch.nan)  # what cannot be read is NaN, never a number that looks right
        graph.replay()
    assert output.isnan().all()


# --- nothing stays behind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", SHAPES)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_networks_hold_all_their_tensors_where_they_are_moved(blocks, alpha):
    nets = [network(name, blocks, alpha=alpha if METHODS[name].is_proximal else 1.0)[0] for name in METHODS]
    nets += [MDEQ(1, 3, fine=4, coarse=4, groups=1), mondeq(4, 3, width=5)]
    nets += [ParaFormer(image_size=8, patch_size=4, channels=1, classes=3, branches=2, width=6, heads=2, hidden=8)]
    for net in nets:
        assert not list(left_behind(net))


# --- for real ----------------------------------------------------------------------------------------------------


def readings():
    """Every method in every reading that it has."""
    for name, method in METHODS.items():
        yield from ((name, reading) for reading in ("explicit", "swept", "swept as one"))
        if method.is_proximal:
            yield name, "implicit"
        if method.has_equilibrium:
            yield name, "equilibrium"
        if method.has_equilibrium and name not in ("ladmm", "pdhg"):
            yield name, "newton"


@pytest.mark.parametrize(("name", "reading"), list(readings()))
@by_blocks
@by_batch
def test_every_reading_trains_where_it_is_moved(name, blocks, batch, reading, device):
    """Made on the processor and moved, as most networks are; the numbers are the processor's."""
    method = METHODS[name]
    with torch.device("cpu"):
        if reading == "equilibrium":
            make, shape = SHAPES[blocks]
            frozen = method.frozen()
            net = OptDEQ(frozen, frozen.tied(make()), rtol=1e-9, atol=0.0, max_steps=300)
        else:
            net, shape = network(name, blocks, alpha=0.0 if reading == "implicit" else 1.0)
        z = torch.randn(batch, *shape)
    evaluate = {
        "swept": lambda net, z: parallel_evaluate(net, z, sweeps=2),
        "swept as one": lambda net, z: parallel_evaluate(net, z, sweeps=2, batched=True),
        "newton": lambda net, z: parallel_evaluate(net, z, sweeps=2, newton=Newton()),
    }.get(reading, lambda net, z: net(z))
    found = []
    for place in dict.fromkeys(("cpu", device)):
        moved, start = copy.deepcopy(net).eval().to(place), z.detach().to(place, copy=True).requires_grad_()
        output = evaluate(moved, start)
        output.square().sum().backward()
        found.append((output.detach().cpu(), start.grad.cpu()))
        assert output.device.type == place
    torch.testing.assert_close(found[-1], found[0], rtol=1e-4, atol=1e-4)
