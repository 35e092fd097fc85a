"""Attention of all layers at once: by fused kernels, with the values and gradients of one layer after the other."""

import itertools
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.utils._python_dispatch import TorchDispatchMode

from models import Newton, OptDNN, parallel_evaluate
from models import attention as rows
from models.attention import attend
from models.parallel.attention import attend_by_layers
from solvers.state import tree_leaves

LAYERS, BATCH, HEADS, TOKENS, WIDTH = 3, 2, 4, 5, 8
MASKS = {
    "none": None,
    "tokens": (TOKENS, TOKENS),
    "heads": (HEADS, TOKENS, TOKENS),
    "all rows": (1, 1, TOKENS, TOKENS),
    "rows": (BATCH, 1, TOKENS, TOKENS),
    "everything": (BATCH, HEADS, TOKENS, TOKENS),
}
SHAPES = {
    2: (TOKENS, WIDTH),
    3: (HEADS, TOKENS, WIDTH),
    4: (BATCH, HEADS, TOKENS, WIDTH),
    5: (2, BATCH, HEADS, TOKENS, WIDTH),
}


class Largest(TorchDispatchMode):
    """The kernels of attention that run, the rows they take, and the most entries that any result holds."""

    def __init__(self):
        super().__init__()
        self.attention, self.entries = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if "flash" in name or "efficient" in name:
            self.attention.append((name, args[0].shape[0]))
        found = func(*args, **(kwargs or {}))
        tensors = (each for each in tree_leaves(found) if isinstance(each, torch.Tensor))
        sizes = [each.untyped_storage().nbytes() // each.itemsize for each in tensors]
        self.entries = max([self.entries, *sizes])
        return found


def layered(*shape, layers=LAYERS):
    return torch.randn(layers, *shape, dtype=torch.float64, requires_grad=True)


def same(found, expected, tensors):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    of_found, of_expected = (torch.autograd.grad(output, tensors, weights) for output in (found, expected))
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# --- one call for all layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shared", [each for each in itertools.product([False, True], repeat=3) if not all(each)])
def test_layers_have_the_values_and_gradients_of_each(rank, causal, shared):
    tensors = [layered(*SHAPES[rank], layers=1 if once else LAYERS) for once in shared]
    q, k, v = (tensor[0] if once else tensor for tensor, once in zip(tensors, shared, strict=True))
    dims = tuple(None if once else 0 for once in shared)
    found = torch.vmap(lambda *each: attend_by_layers(*each, is_causal=causal, scale=0.7), in_dims=dims)(q, k, v)
    at = [tensor.expand(LAYERS, *SHAPES[rank]) for tensor in tensors]
    expected = torch.stack([F.scaled_dot_product_attention(*each, is_causal=causal, scale=0.7) for each in zip(*at)])
    same(found, expected, tensors)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("own", [False, True], ids=["one mask", "a mask for each layer"])
@pytest.mark.parametrize("boolean", [False, True])
def test_masks(mask, own, boolean):
    q, k, v = (layered(*SHAPES[4]) for _ in range(3))
    shape = MASKS[mask]
    if shape is None:
        masks = None
    else:
        masks = torch.randn(LAYERS if own else 1, *shape, dtype=torch.float64)
        masks = masks > -1 if boolean else masks
        if boolean:
            masks = masks | torch.eye(TOKENS, dtype=torch.bool)  # each token sees one at least
    whole = masks if own or masks is None else masks[0]
    dims = (0, 0, 0, 0 if own and masks is not None else None)
    found = torch.vmap(attend_by_layers, in_dims=dims)(q, k, v, whole)
    each = LAYERS * [None] if masks is None else masks.expand(LAYERS, *shape)
    expected = torch.stack([F.scaled_dot_product_attention(*some) for some in zip(q, k, v, each, strict=True)])
    same(found, expected, [q, k, v])


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("mask", [(TOKENS, TOKENS), (1, TOKENS)])
def test_masks_of_fewer_dimensions_keep_the_shape(rank, mask):
    q, k, v = (torch.randn(SHAPES[rank], dtype=torch.float64) for _ in range(3))
    mask = torch.randn(mask, dtype=torch.float64)
    torch.testing.assert_close(attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask))
    found = torch.vmap(attend_by_layers, in_dims=(0, 0, 0, None))(*(each[None] for each in (q, k, v)), mask)
    torch.testing.assert_close(found[0], F.scaled_dot_product_attention(q, k, v, mask))


def test_fewer_heads_of_keys_and_rows_that_are_shared():
    q, k = layered(*SHAPES[4]), layered(1, 2, TOKENS, WIDTH)
    found = torch.vmap(lambda q, k: attend_by_layers(q, k, k, enable_gqa=True))(q, k)
    whole = k.expand(-1, BATCH, -1, -1, -1)
    expected = [F.scaled_dot_product_attention(q, k, k, enable_gqa=True) for q, k in zip(q, whole, strict=True)]
    same(found, torch.stack(expected), [q, k])


def test_layers_may_map_over_heads_or_samples_themselves():
    q, k, v = (layered(*SHAPES[4]) for _ in range(3))
    over_heads = torch.vmap(torch.vmap(attend_by_layers, in_dims=1, out_dims=1))
    over_samples = torch.vmap(torch.vmap(attend_by_layers))
    for mapped in (over_heads, over_samples):
        same(mapped(q, k, v), F.scaled_dot_product_attention(q, k, v), [q, k, v])


@pytest.mark.parametrize("lead", [(7,), (3, 5), (0, 3), (2, 0), (2, 1, 4)])
@pytest.mark.parametrize("mask", [(TOKENS, TOKENS), (1, TOKENS, TOKENS), None])
def test_rows_beyond_one_launch_are_taken_in_parts(lead, mask, monkeypatch):
    monkeypatch.setattr(rows, "MOST", 4)
    q, k, v = (torch.randn(*lead, 2, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = None if mask is None else torch.randn(mask, dtype=torch.float64)
    with Largest() as seen, torch.no_grad():
        attend(*(each.float() for each in (q, k, v)))
    assert all(taken <= 4 for _, taken in seen.attention)
    same(attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask), [q, k, v])


# --- transforms with attention, as they stand --------------------------------------------------------------------


class Block(nn.Module):
    """PyTorch's own attention, in a block as people write it."""

    def __init__(self, batch_first=True, mask=None):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.mlp = nn.Linear(WIDTH, WIDTH)
        self.mask = mask

    def forward(self, z):
        y = self.norm(z)
        return self.mlp(self.attention(y, y, y, need_weights=False, attn_mask=self.mask)[0])


KINDS = {
    "batch first": Block,
    "tokens first": lambda: Block(batch_first=False),
    "masked": lambda: Block(mask=torch.ones(64, 64, dtype=torch.bool).triu(1)),
    "encoder layer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True),
    "decoder layer": lambda: nn.TransformerDecoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_sweeps_run_fused_kernels_on_the_rows_of_all_layers(kind, tied):
    make, shape = KINDS[kind], (64, BATCH, WIDTH) if kind == "tokens first" else (BATCH, 64, WIDTH)
    first = make()
    net = OptDNN("gd", LAYERS * [first] if tied else [first, *(make() for _ in range(LAYERS - 1))])
    z = torch.randn(shape, requires_grad=True)
    memory = [torch.randn(BATCH, 3, WIDTH)] if kind == "decoder layer" else []
    with Largest() as seen:
        output = parallel_evaluate(net, z, *memory, sweeps=LAYERS, batched=True)
        output.square().sum().backward()
    assert seen.attention
    assert {taken for _, taken in seen.attention} == {LAYERS * BATCH}
    assert seen.entries <= 3 * LAYERS * BATCH * 64 * WIDTH  # neither scores nor repeated weights
    torch.testing.assert_close(output, net(z, *memory), rtol=1e-4, atol=1e-5)
    found, z.grad = z.grad, None
    net(z, *memory).square().sum().backward()
    torch.testing.assert_close(found, z.grad, rtol=1e-3, atol=1e-4)


def test_the_callers_choice_of_kernels_holds():
    net, z = OptDNN("gd", [Block() for _ in range(LAYERS)]), torch.randn(BATCH, 6, WIDTH, requires_grad=True)
    with Largest() as seen, sdpa_kernel(SDPBackend.MATH):
        output = parallel_evaluate(net, z, sweeps=2, batched=True)
        (slope,) = torch.autograd.grad(output.square().sum(), z, create_graph=True)
        slope.square().sum().backward()  # a fused kernel has no second derivative, on its own either
    assert not seen.attention
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["batch first", "encoder layer"])
def test_under_further_transforms(kind):
    net, z = OptDNN("gd", [KINDS[kind]().double() for _ in range(LAYERS)]), torch.randn(BATCH, 6, WIDTH).double()

    def swept(z):
        return parallel_evaluate(net, z, sweeps=LAYERS, batched=True)

    with sdpa_kernel(SDPBackend.MATH):  # the serial network's own kernels have no forward-mode derivative
        for function in (lambda f: torch.func.jvp(f, (z,), (z.cos(),))[1], lambda f: torch.func.vjp(f, z)[1](z)[0]):
            torch.testing.assert_close(function(swept), function(net), rtol=1e-9, atol=1e-9)
        points = torch.stack((z, -z))
        torch.testing.assert_close(torch.vmap(swept)(points), torch.vmap(net)(points), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.func.jvp(swept, (z,), (z.cos(),))[0], net(z), rtol=1e-9, atol=1e-9)


def test_in_mixed_precision_and_with_dropout():
    net, z = OptDNN("gd", [Block() for _ in range(LAYERS)]), torch.randn(BATCH, 6, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = parallel_evaluate(net, z, sweeps=LAYERS, batched=True), net(z)
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
    for transform in net.transforms:
        transform.attention.dropout = 0.5
    drawn = [parallel_evaluate(net.train(), z, sweeps=1, batched=True) for _ in range(2)]
    assert not torch.equal(*drawn)
    torch.testing.assert_close(parallel_evaluate(net.eval(), z, sweeps=LAYERS), net(z))


class Biased(nn.Module):
    """Attention with one of PyTorch's masks that hold no values."""

    def __init__(self, mask):
        super().__init__()
        self.inner, self.mask = nn.Linear(WIDTH, WIDTH), mask

    def forward(self, z):
        h = self.inner(z)[:, None]
        return F.scaled_dot_product_attention(h, h, h, attn_mask=self.mask(TOKENS, TOKENS))[:, 0]


@pytest.mark.parametrize("mask", [causal_lower_right, causal_upper_left])
@pytest.mark.parametrize("batched", [True, False])
def test_masks_of_other_classes_keep_their_meaning(mask, batched):
    net, z = OptDNN("gd", [Biased(mask) for _ in range(LAYERS)]), torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    found, expected = parallel_evaluate(net, z, sweeps=LAYERS, batched=batched), net(z)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), z)[0] for each in (found, expected)))


@pytest.mark.parametrize("options", [{"sweeps": 2}, {"rtol": 1e-9}], ids=["sweeps", "tolerance"])
def test_newton_trains_layers_of_attention_one_by_one(options):
    def mask(*_):
        return None

    net = OptDNN("gd", [Biased(mask) for _ in range(LAYERS)])
    z = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    results = []
    for batched in (True, False):
        output = parallel_evaluate(net, z, newton=Newton(), batched=batched, **options)
        output = getattr(output, "value", output)
        results.append((output, *torch.autograd.grad(output.square().sum(), [z, *net.parameters()])))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


def test_threads_leave_the_fast_path_as_it_was():
    net, z = OptDNN("gd", [nn.Linear(WIDTH, WIDTH) for _ in range(16)]), torch.randn(BATCH, WIDTH)
    assert torch.backends.mha.get_fastpath_enabled()
    for _ in range(5):
        threads = [Thread(target=lambda: [parallel_evaluate(net, z, sweeps=1) for _ in range(10)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.backends.mha.get_fastpath_enabled()
