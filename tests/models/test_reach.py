"""What sweeps reach of what blocks keep: on PyTorch's layers, in modules that are no submodules, in every container."""

import copy
import gc
import io
import warnings
import weakref
from collections import namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from models import Newton, OptDNN, UnlikeError, parallel_evaluate
from models.parallel.gather import gathered

BATCH, WIDTH, DEPTH = 5, 6, 4
MANY = 18  # layers, which are evaluated as one by default
OPTIONS = {
    "sweeps": {"sweeps": DEPTH},
    "tolerance": {"rtol": 1e-11},
    "Newton": {"sweeps": DEPTH, "newton": Newton()},
}
by_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@dataclass(slots=True)
class Slots:
    count: int = 0
    several: list[int] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class Frozen:
    several: list[int] = field(default_factory=list)


@dataclass
class Derived(Slots):
    more: int = 0


class Plain(Slots):
    pass


Cache = namedtuple("Cache", "key")


class Block(nn.Module):
    """Keeps something, in ways that subclasses define, and multiplies with it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def update(self, h):
        """Change what is kept, and return a number of it."""
        return 1.0

    def forward(self, z):
        h = torch.tanh(self.linear(z))
        with torch.no_grad():
            number = self.update(h)
        return 0.3 * h * number


class Adapted(Block):
    """Test-time adaptation: statistics of a layer of PyTorch's are updated in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH).eval()

    def update(self, h):
        self.norm.running_mean.mul_(0.5).add_(h.mean(0), alpha=0.5)
        return self.norm(h)

    def kept(self):
        return self.norm.running_mean


class Hooked(Block):
    def __init__(self):
        super().__init__()
        self.linear.register_forward_hook(lambda module, *_: setattr(module, "calls", getattr(module, "calls", 0) + 1))

    def update(self, h):
        return 1 / self.linear.calls

    def kept(self):
        return self.linear.calls


class Space(Block):
    """A bare module as a namespace."""

    def __init__(self):
        super().__init__()
        self.space = nn.Module()
        self.space.count = 0
        self.space.register_buffer("average", torch.zeros(()))

    def update(self, h):
        self.space.count += 1
        self.space.average.mul_(0.5).add_(0.5)
        return self.space.average / self.space.count

    def kept(self):
        return self.space.count, self.space.average


class Maps(Block):
    """Leaves a map on its attention, to be drawn."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2)

    def update(self, h):
        _, self.attention.last = self.attention(h, h, h)
        return self.attention.last.sum() / BATCH

    def kept(self):
        return self.attention.last


class Listed(Block):
    """A module that is no submodule."""

    def __init__(self):
        super().__init__()
        self.hidden = [nn.Sequential(nn.BatchNorm1d(WIDTH).double())]

    def update(self, h):
        return self.hidden[0](h)

    def kept(self):
        norm = self.hidden[0][0]
        return norm.running_mean, norm.num_batches_tracked


class Slotted(Block):
    def __init__(self):
        super().__init__()
        self.state, self.frozen = Slots(), Frozen()

    def update(self, h):
        self.state.count += 1
        self.state.several.append(self.state.count)
        self.frozen.several.append(1)
        return 1 / self.state.count

    def kept(self):
        return self.state.count, len(self.state.several), len(self.frozen.several)


class OfTheClass(Block):
    """What all layers have in common, which counts them."""

    state = Slots()
    several = ({"count": 0},)
    module = nn.Module()

    def update(self, h):
        self.state.count += 1
        self.several[0]["count"] += 1
        self.module.count = getattr(self.module, "count", 0) + 1
        return 1.0

    def kept(self):
        return self.state.count, self.several[0]["count"], self.module.count


class Expanded(Block):
    """An expanded view of a buffer that is updated."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ring", torch.ones(WIDTH))

    def update(self, h):
        if not hasattr(self, "window"):
            self.window = self.ring.expand(BATCH, WIDTH)
        self.ring.mul_(0.5).add_(h.mean(0), alpha=0.5)
        return self.window

    def kept(self):
        return self.ring, self.window


class Calibrated(Block):
    """A layer of PyTorch's gets a buffer in its first evaluation."""

    def update(self, h):
        if not hasattr(self.linear, "scale"):
            self.linear.register_buffer("scale", h.abs().mean())
        return self.linear.scale

    def kept(self):
        return self.linear.scale


class BesideSlots(Block):
    """Fields in slots, and others in a `__dict__`."""

    def __init__(self):
        super().__init__()
        self.state, self.other = Derived(), Plain()
        self.other.tag = [0]

    def update(self, h):
        self.state.count += 1
        self.state.more += 2
        self.other.count += 3
        self.other.tag[0] += 1
        return 1 / (self.state.count + self.state.more + self.other.count + self.other.tag[0])

    def kept(self):
        return self.state.count, self.state.more, self.other.count, self.other.tag[0]


class InTuples(Block):
    """Tensors in tuples, which are written in place, and lists in named tuples."""

    def __init__(self):
        super().__init__()
        self.pair = (torch.zeros(()), (torch.zeros(()), "a word"))
        self.cache = {"a": Cache([])}

    def update(self, h):
        self.pair[0].add_(1)
        self.pair[1][0].add_(2)
        self.cache["a"].key.append(1.0)
        return 1 / (self.pair[0] + self.pair[1][0] + len(self.cache["a"].key)).double()

    def kept(self):
        return self.pair[0], self.pair[1][0], len(self.cache["a"].key)


class Scale(namedtuple("Scale", "mean inverse")):
    """Is not made of what it holds."""

    __slots__ = ()

    def __new__(cls, mean, deviation):
        return super().__new__(cls, mean, 1 / deviation)


class Tagged(tuple):
    """Has an attribute, and another constructor than a tuple."""

    def __new__(cls, *parts, tag):
        found = super().__new__(cls, parts)
        found.tag = tag
        return found


class Tuples(Block):
    """Tuples of other classes, and one in two places, beside a tensor that is written in place."""

    def __init__(self):
        super().__init__()
        self.count = torch.zeros((), dtype=torch.float64)
        self.scale = Scale(torch.zeros(()), torch.tensor(4.0))
        self.tagged = Tagged(self.count, [0], tag=2.0)
        self.current = self.last = (self.count, torch.ones(1).max(0))

    def update(self, h):
        assert self.current is self.last
        assert self.current[0] is self.count is self.tagged[0]
        assert self.current[1].indices.item() == 0
        self.count += 1
        self.number = self.tagged.tag * self.scale.inverse / self.current[0]
        return self.number

    def kept(self):
        assert self.current is self.last
        assert self.current[0] is self.count is self.tagged[0]
        return self.count, self.number


class Overridden(Slots):
    __slots__ = ()
    count = property(lambda self: 7)


class Properties(Block):
    """A slot that a property hides."""

    def __init__(self):
        super().__init__()
        self.state = Overridden.__new__(Overridden)
        self.state.several = []

    def update(self, h):
        self.state.several.append(self.state.count)
        return 1 / len(self.state.several)

    def kept(self):
        return self.state.several


BLOCKS = [
    Tuples,
    Properties,
    Calibrated,
    BesideSlots,
    InTuples,
    Adapted,
    Hooked,
    Space,
    Maps,
    Listed,
    Slotted,
    OfTheClass,
    Expanded,
]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@by_options
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_update_once(block, options, training):
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(OptDNN("gd", [block() for _ in range(DEPTH)]).double())
        for module in nets[-1].modules():
            module.training = training and not isinstance(module, nn.BatchNorm1d)
    (net, serial), z = nets, torch.randn(BATCH, WIDTH)
    with torch.no_grad():
        for _ in range(2):
            before = block.state.count if block is OfTheClass else 0
            expected, kept = serial(z), [transform.kept() for transform in serial.transforms]
            between = block.state.count if block is OfTheClass else 0
            found = parallel_evaluate(net, z, **options)
            torch.testing.assert_close(getattr(found, "value", found), expected, rtol=1e-8, atol=1e-8)
            if block is OfTheClass:
                assert block.state.count - between == between - before == DEPTH
            else:
                torch.testing.assert_close([each.kept() for each in net.transforms], kept, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("block", BLOCKS)
def test_evaluations_as_one_refuse_them(block):
    net, z = OptDNN("gd", [block() for _ in range(MANY)]).double().eval(), torch.randn(BATCH, WIDTH)
    with torch.no_grad(), pytest.raises(UnlikeError):
        parallel_evaluate(net, z, sweeps=2, batched=True)


class Counted(nn.Module):
    """Counts in a buffer, as TorchScript can."""

    count: torch.Tensor

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, z):
        self.count += 1
        return 0.3 * torch.tanh(self.norm(self.linear(z))) / self.count


class Holding(nn.Module):
    def __init__(self, script):
        super().__init__()
        self.scripts = [script]

    def forward(self, z):
        return self.scripts[0](z)


@pytest.mark.parametrize("listed", [False, True], ids=["as a block", "in a list"])
@pytest.mark.parametrize("options", [{"sweeps": DEPTH}, {"rtol": 1e-11}], ids=["sweeps", "tolerance"])
def test_torchscript_updates_its_buffers_once(options, listed):
    torch.manual_seed(0)
    serial, z = OptDNN("gd", [Counted() for _ in range(DEPTH)]).double(), torch.randn(BATCH, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, that TorchScript will go
        scripts = [torch.jit.script(copy.deepcopy(transform)) for transform in serial.transforms]
        net = OptDNN("gd", list(map(Holding, scripts)) if listed else scripts)
    with torch.no_grad():
        expected, found = serial(z), parallel_evaluate(net, z, **options)
    torch.testing.assert_close(getattr(found, "value", found), expected, rtol=1e-9, atol=1e-9)
    for script, transform in zip(scripts, serial.transforms, strict=True):
        torch.testing.assert_close(dict(script.named_buffers()), dict(transform.named_buffers()), rtol=1e-9, atol=1e-9)


class Routed(nn.Module):
    """Drops out of some rows only, so that the number of draws depends on the data."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, z):
        rows = (z.mean(-1) > 0).nonzero()[:, 0]
        h = F.dropout(torch.tanh(self.linear(z[rows])), 0.3)
        return 0.3 * torch.zeros_like(z).index_add(0, rows, h)


@pytest.mark.parametrize("options", [{"sweeps": DEPTH}, {"rtol": 1e-11}], ids=["sweeps", "tolerance"])
def test_generators_end_where_the_network_leaves_them(options, default_device):
    net, z = OptDNN("gd", [Routed() for _ in range(DEPTH)]).double(), torch.randn(40, WIDTH)
    drawn = []
    for evaluate in (net, lambda z: parallel_evaluate(net, z, batched=False, **options)):
        torch.manual_seed(1)
        output = evaluate(z)
        getattr(output, "value", output).sum().backward()
        drawn.append(torch.rand((), device=default_device))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "nest",
    [
        lambda value: (value,),
        lambda value: Cache(value),
        lambda value: [value],
        lambda value: {"key": (value, [value])},
        lambda value: SimpleNamespace(key=value),
        lambda value: Slots(several=[value]),
    ],
    ids=["a tuple", "a named tuple", "a list", "a dict", "an object", "slots"],
)
@pytest.mark.parametrize("tracked", [False, True], ids=["no_grad", "tracked"])
def test_what_newton_leaves_are_plain_tensors(nest, tracked):
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.cache = nn.Linear(WIDTH, WIDTH), None

        def forward(self, z):
            y = self.linear(z)
            self.cache = nest(y.detach() if tracked else y)
            return 0.3 * torch.tanh(y)

    net, z = OptDNN("gd", [Cached() for _ in range(DEPTH)]).double(), torch.randn(BATCH, WIDTH)
    with torch.set_grad_enabled(tracked):
        parallel_evaluate(net, z, sweeps=DEPTH, newton=Newton())
    kept = [transform.cache for transform in net.transforms]
    torch.save([_flat(each) for each in kept], io.BytesIO())
    copied = copy.deepcopy(kept)
    with torch.no_grad():
        net(z)
    for one, other in zip(copied, (transform.cache for transform in net.transforms), strict=True):
        torch.testing.assert_close(_flat(one), _flat(other))


def _flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (SimpleNamespace, Slots)):
        value = value.several if isinstance(value, Slots) else vars(value)
    return [tensor for part in (value.values() if isinstance(value, dict) else value) for tensor in _flat(part)]


class Counting(Block):
    count = 0

    def update(self, h):
        self.count += 1
        return 1.0


def _batch_normalised():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())


@pytest.mark.parametrize("options", [{"sweeps": MANY}, {"rtol": 1e-11}], ids=["sweeps", "tolerance"])
@pytest.mark.parametrize("block", [Counting, _batch_normalised])
def test_a_checkpoint_round_the_first_call(block, options):
    torch.manual_seed(0)
    net, z = OptDNN("gd", [block() for _ in range(MANY)]).double(), torch.randn(BATCH, WIDTH)
    serial = copy.deepcopy(net)
    serial(z).square().sum().backward()

    def evaluate(z):
        found = parallel_evaluate(net, z, **options)
        return getattr(found, "value", found)

    checkpoint(evaluate, z.requires_grad_(), use_reentrant=False).square().sum().backward()
    for one, other in zip(net.parameters(), serial.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-8)


class Growing(Block):
    """Makes a submodule when it is first evaluated."""

    def update(self, h):
        if not hasattr(self, "norm"):
            self.norm = nn.BatchNorm1d(WIDTH).to(h)
        return self.norm(h)


class Reordered(Block):
    """The branch that was used last comes last."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in "ab"})

    def update(self, h):
        branch = self.branches.pop("a")
        self.branches["a"] = branch
        return branch(h)


@by_options
@pytest.mark.parametrize("depth", [DEPTH, MANY])
def test_submodules_made_in_a_sweep_are_refused_once(depth, options):
    net, z = OptDNN("gd", [Growing() for _ in range(depth)]).double(), torch.randn(BATCH, WIDTH)
    with torch.no_grad():
        with pytest.raises(
            RuntimeError, match=r"Growing makes or replaces submodules .*evaluate net\(z0\) once before"
        ):
            parallel_evaluate(net, z, **options)
        assert not any(hasattr(transform, "norm") for transform in net.transforms)
        net(z)
        net.eval()
        found = parallel_evaluate(net, z, **options | ({"sweeps": depth} if "sweeps" in options else {}))
        torch.testing.assert_close(getattr(found, "value", found), net(z), rtol=1e-8, atol=1e-8)


class Noisy(nn.Module):
    """Draws from a generator that it keeps somewhere."""

    def __init__(self, keep):
        super().__init__()
        self.linear, self.space = nn.Linear(WIDTH, WIDTH), nn.Module()
        keep(self, torch.Generator("cpu").manual_seed(1))

    def forward(self, z):
        noise = torch.randn(z.shape, generator=self.generator(), device="cpu", dtype=torch.float64)
        return 0.3 * torch.tanh(self.linear(z) + noise.to(z))


def in_a_namespace(block, generator):
    block.space.own = generator
    block.generator = lambda: block.space.own


def on_a_layer(block, generator):
    block.linear.own = generator
    block.generator = lambda: block.linear.own


def in_a_tuple_of_the_class(block, generator):
    block.__class__ = type("Own", (Noisy,), {"own": (generator,)})
    block.generator = lambda: block.own[0]


def deep(block, generator):
    block.several = [{"a": (generator,)}, SimpleNamespace()]
    block.generator = lambda: block.several[0]["a"][0]


@pytest.mark.parametrize("keep", [in_a_namespace, on_a_layer, in_a_tuple_of_the_class, deep])
@pytest.mark.parametrize("options", [{"sweeps": DEPTH}, {"rtol": 1e-11}], ids=["sweeps", "tolerance"])
def test_generators_are_found_wherever_they_are_kept(keep, options):
    outputs = []
    for evaluate in (lambda net, z: net(z), lambda net, z: parallel_evaluate(net, z, **options)):
        torch.manual_seed(0)
        net, z = OptDNN("gd", [Noisy(keep) for _ in range(DEPTH)]).double(), torch.randn(BATCH, WIDTH)
        with torch.no_grad():
            outputs.append([getattr(found, "value", found) for found in (evaluate(net, z), evaluate(net, z))])
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-8)


class Gone(Block):
    """Keeps a proxy of what there is no more."""

    def __init__(self):
        super().__init__()
        self.proxies = [weakref.proxy(set())]


@by_options
@pytest.mark.parametrize("block", [Reordered, Gone])
def test_what_changes_nothing_is_no_obstacle(block, options):
    net, z = OptDNN("gd", [block() for _ in range(DEPTH)]).double(), torch.randn(BATCH, WIDTH)
    with torch.no_grad():
        found = parallel_evaluate(net, z, **options)
        torch.testing.assert_close(getattr(found, "value", found), net(z), rtol=1e-8, atol=1e-8)


class Auxiliary(Block):
    def __init__(self):
        super().__init__()
        self.auxiliary = None

    def forward(self, z):
        self.auxiliary = z.square().mean()
        return 0.3 * torch.tanh(self.linear(z))


def _pruned():
    return nn.Sequential(prune.random_unstructured(nn.Linear(WIDTH, WIDTH), "weight", 0.5), nn.Tanh())


def _normalised():
    return nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)), nn.Tanh())


@pytest.mark.parametrize(
    ("make", "tracked", "newton"),
    [(Auxiliary, False, Newton()), (_pruned, True, None), (_normalised, True, None)],
    ids=["nothing is tracked", "pruned", "normalised"],
)
def test_no_warning_of_graphs_that_end_nowhere(make, tracked, newton):
    net = OptDNN("gd", [make() for _ in range(DEPTH)]).double()
    with torch.set_grad_enabled(tracked), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        parallel_evaluate(net, torch.randn(BATCH, WIDTH), rtol=1e-8, newton=newton)


class Masked(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(WIDTH))

    def update(self, h):
        return self.mask


def test_stacked_buffers_are_freed_at_once(monkeypatch):
    """Not only when the garbage collector comes."""
    net, z, made = OptDNN("gd", [Masked() for _ in range(MANY)]).double(), torch.randn(BATCH, WIDTH), []

    def watched(column):
        tensor = gathered(column)
        if column[0] is net.transforms[0].mask:
            made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr("models.parallel.stack.gathered", watched)
    gc.disable()
    try:
        with torch.no_grad():
            parallel_evaluate(net, z, sweeps=2, batched=True)
        assert [tensor() for tensor in made] == [None]
    finally:
        gc.enable()
