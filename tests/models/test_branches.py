"""Branches of a Para-Former one by one: progressive training, expansion, compression; vectors and tokens; two ranks."""

import copy

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from models import ParaFormer, TokenParaFormer, VectorParaFormer
from models.branches import ROWS_AT_ONCE, Branches

SIZES = {"branches": 4, "depth": 2, "width": 12, "heads": 3, "hidden": 20}
FORMS = {
    "images": (lambda **sizes: ParaFormer(image_size=8, patch_size=4, channels=2, classes=3, **sizes), (5, 2, 8, 8)),
    "vectors": (lambda **sizes: VectorParaFormer(features=6, classes=3, **sizes), (5, 6)),
    "tokens": (lambda **sizes: TokenParaFormer(length=7, channels=4, classes=3, **sizes), (5, 7, 4)),
}
by_form = pytest.mark.parametrize("form", FORMS)


def build(form="images", **changes):
    make, shape = FORMS[form]
    return make(**{**SIZES, **changes}), torch.randn(shape)


@by_form
def test_the_first_branches_are_a_network_of_their_own(form):
    model, x = build(form)
    prefixes = model.prefixes(x)
    assert prefixes.shape == (4, 5, 3)
    for count in (1, 2, 4):
        alone = model.kept(range(count))
        assert alone.branches == count
        torch.testing.assert_close(model(x, branches=count), alone(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(prefixes[count - 1], alone(x), rtol=0, atol=1e-12)


@by_form
@pytest.mark.parametrize("batched", [True, False])
def test_batched_and_loop_agree(form, batched):
    model, x = build(form)
    expected = model(x)
    model.batched = batched
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", ["cpu"])  # which alone has such a cache
def test_groups_that_fit_the_cache_change_nothing():
    body, tokens = Branches(5, width=6, heads=2, hidden=4), torch.randn(ROWS_AT_ONCE // 20, 10, 6)
    assert [len(outputs) for outputs in body._runs(tokens, 5)] == [2, 2, 1]
    grouped = body(tokens)
    body.batched = False
    torch.testing.assert_close(grouped, body(tokens), rtol=0, atol=1e-11)


def coded_branch(x, block, index, heads):
    """A block of the published code, from its weights, by PyTorch's own layers."""
    scale, shift = block.norms[index, :, 0], block.norms[index, :, 1]
    width = x.shape[-1]
    x = nn.functional.layer_norm(x, (width,), scale[0], shift[0])
    q, k, v = (x @ block.qkv[index]).split(width, dim=-1)

    def by_head(y):
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    weights = (by_head(q) @ by_head(k).mT / (width // heads) ** 0.5).softmax(dim=-1)
    mixed = (weights @ by_head(v)).transpose(1, 2).flatten(2)
    y = x + mixed @ block.project[index] + block.project_bias[index]
    y = nn.functional.layer_norm(y, (width,), scale[1], shift[1])
    inner = nn.functional.gelu(y @ block.expand[index] + block.expand_bias[index])
    return y + inner @ block.contract[index] + block.contract_bias[index]


def test_as_coded_each_block_adds_to_its_normalised_input_without_biases_of_the_attention():
    model, x = build(as_coded=True)
    model.eval()
    assert not [name for name, _ in model.named_parameters() if "qkv_bias" in name]
    tokens = model.tokens(x)
    expected = 0
    for index in range(4):
        y = tokens
        for block in model.body.blocks:
            y = coded_branch(y, block, index, heads=3)
        expected = expected + y
    torch.testing.assert_close(model.body(tokens), expected, rtol=0, atol=1e-12)
    kept, joined = model.kept([0, 2]), model.joined(build(as_coded=True)[0])
    assert (kept.branches, joined.branches) == (2, 8)
    assert kept(x).shape == joined(x).shape == (5, 3)


def test_as_coded_a_tenth_is_dropped_in_training_alone_and_positions_are_normal():
    torch.manual_seed(0)
    model, x = build(as_coded=True, width=96)
    assert 0.9 < float(model.tokens.positions.detach().std()) < 1.1
    assert float(model.tokens.class_token.detach().std()) > 0.5
    assert not torch.equal(model(x), model(x))
    dropped = (model.tokens(x) == 0).double().mean()
    assert 0.05 < dropped < 0.15
    model.eval()
    assert torch.equal(model(x), model(x))
    plain, _ = build()
    assert torch.equal(plain(x), plain(x))


@pytest.mark.parametrize("share", [-0.1, 1, True, "0.1"])
def test_a_share_to_drop_is_below_one(share):
    with pytest.raises(ValueError, match=r"dropout=.* must be a number from 0 to below 1"):
        Branches(2, width=6, heads=2, hidden=4, dropout=share)


class Counted(TorchDispatchMode):
    """Counts the tensors of one shape that are made."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.made = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.made += isinstance(output, torch.Tensor) and output.shape == self.shape
        return output


@pytest.mark.parametrize("batched", [None, False])
def test_the_gradient_of_a_weight_is_put_together_once_whatever_the_number_of_groups(batched):
    body, tokens = Branches(8, depth=1, width=6, heads=2, hidden=4), torch.randn(ROWS_AT_ONCE // 20, 10, 6)
    body.batched = batched
    output = body(tokens).sum()
    with Counted(body.blocks[0].qkv.shape) as counted:
        output.backward()
    assert counted.made <= 3  # 2 in PyTorch 2.15, 3 in 2.9; 8 where each branch made one


@by_form
def test_progressive_training_takes_a_step_for_each_prefix_and_learns(form):
    model, x = build(form)
    labels = torch.tensor([0, 1, 2, 0, 1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = nn.functional.cross_entropy(model(x), labels).item()
    for _ in range(3):
        for branches in range(1, model.branches + 1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x, branches=branches), labels).backward()
            last = model.body.blocks[0].qkv.grad[branches:]
            assert not last.any()  # branches that took no part have no gradient
            optimizer.step()
    assert nn.functional.cross_entropy(model(x), labels).item() < 0.5 * before


def test_dropped_and_joined_branches_are_the_sum_of_what_is_left():
    model, x = build()
    first, rest = model.kept([0, 2]), model.kept([3, 1])
    torch.testing.assert_close(first.joined(rest)(x), model(x), rtol=0, atol=1e-12)
    assert first.joined(rest).branches == 4
    assert model.branches == 4  # copies: the model is as it was
    with torch.no_grad():
        first.body.blocks[0].qkv.zero_()
    assert model.body.blocks[0].qkv.any()


def test_copies_of_what_is_frozen_are_frozen():
    (model, _), (other, _) = build(), build(branches=2)
    model.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.kept([0, 2]).parameters())
    assert not any(parameter.requires_grad for parameter in model.joined(model).parameters())
    with torch.inference_mode():
        joined = model.joined(other)
    assert all(parameter.requires_grad for parameter in joined.body.parameters())  # those of the other are trained


def test_expansion_trains_on():
    model, x = build()
    larger = model.joined(build(branches=2)[0])
    larger(x).square().sum().backward()
    assert larger.body.blocks[1].expand.grad.shape[0] == 6
    assert larger.body.blocks[1].expand.grad.flatten(1).any(dim=1).all()


def test_copies_load_the_state_of_their_size():
    model, x = build()
    twin = build()[0].kept([0, 1])
    twin.load_state_dict(model.kept([0, 1]).state_dict())
    torch.testing.assert_close(twin(x), model(x, branches=2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", [{"width": 6}, {"hidden": 8}, {"depth": 1}])
def test_branches_that_do_not_share_shapes_are_not_joined(changes):
    with pytest.raises(ValueError, match="branches of different shapes cannot be joined"):
        build()[0].joined(build(**changes)[0])


@pytest.mark.parametrize("which", [[], [4], [-1, 0]])
def test_branches_that_are_not_there_are_refused(which):
    with pytest.raises(ValueError, match=r"branches .* of 4: name at least one, each from 0 to 3"):
        build()[0].kept(which)


@pytest.mark.parametrize("branches", [0, 5, True, 1.0])
def test_counts_that_are_not_there_are_refused(branches):
    model, x = build()
    with pytest.raises(ValueError, match=rf"branches={branches} must be an integer from 1 to 4"):
        model(x, branches=branches)


@pytest.mark.parametrize(
    ("form", "shape", "message"),
    [
        ("vectors", (5, 7), r"vectors of shape \(5, 7\) given, \(batch, 6\) expected"),
        ("tokens", (5, 8, 4), r"tokens of shape \(5, 8, 4\) given, \(batch, at most 7, 4\) expected"),
        ("tokens", (5, 7, 3), r"tokens of shape \(5, 7, 3\) given"),
    ],
)
def test_inputs_of_another_shape_are_refused(form, shape, message):
    with pytest.raises(ValueError, match=message):
        build(form)[0](torch.zeros(shape))


def test_shorter_sequences_are_taken():
    model, x = build("tokens")
    assert model(x[:, :3]).shape == (5, 3)


@pytest.mark.parametrize("form", ["vectors", "tokens"])
def test_sizes_must_be_positive(form):
    make, _ = FORMS[form]
    with pytest.raises(ValueError, match="branches=0 must be an integer of at least 1"):
        make(**{**SIZES, "branches": 0})


# --- several devices ---------------------------------------------------------------------------------------------


def _on_two_ranks(rank, folder):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model, x = torch.load(f"{folder}/model.pt", weights_only=False)
    sharded = model.sharded(init_device_mesh("cpu", (2,)))
    results = {}
    for branches in (None, 2, 5):
        sharded.zero_grad()
        output = sharded(x, branches=branches)
        output.square().sum().backward()
        gradients = {name: None if p.grad is None else p.grad.clone() for name, p in sharded.named_parameters()}
        results[branches] = (output.detach(), gradients)
    torch.save((sharded.body.offset, results), f"{folder}/rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("device", ["cpu"])
def test_two_ranks_are_one_process_forward_and_backward(tmp_path):
    model, x = build(branches=5)
    torch.save((model, x), tmp_path / "model.pt")
    torch.multiprocessing.spawn(_on_two_ranks, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        offset, results = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=False)
        for branches, (output, found) in results.items():
            alone = copy.deepcopy(model)
            expected = alone(x, branches=branches)
            expected.square().sum().backward()
            torch.testing.assert_close(output, expected.detach(), rtol=0, atol=1e-11)
            for name, gradient in found.items():
                whole = dict(alone.named_parameters())[name.replace("body.local.", "body.")].grad
                if "body" in name:
                    share = whole[offset : offset + (2, 3)[rank]]
                    gradient = torch.zeros_like(share) if gradient is None else gradient  # none of its branches counted
                    torch.testing.assert_close(gradient, share, rtol=0, atol=1e-11)
                else:
                    torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-11)


def _alone(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    model, x = build()
    sharded = model.sharded(mesh)
    torch.testing.assert_close(sharded(x), model(x))
    with pytest.raises(TypeError, match="call this before `sharded`"):
        sharded.prefixes(x)
    with pytest.raises(ValueError, match="branches=9 must be an integer from 1 to 4"):
        sharded(x, branches=9)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("device", ["cpu"])
def test_sharded_branches_refuse_what_needs_them_all(tmp_path):
    torch.multiprocessing.spawn(_alone, (str(tmp_path),), nprocs=1)


@pytest.mark.parametrize("batched", [True, False])
def test_causal_branches_sum_what_each_beginning_alone_comes_to(batched):
    branches, tokens = Branches(3, depth=2, width=12, heads=3, hidden=20, causal=True), torch.randn(2, 6, 12)
    branches.batched = batched
    whole = branches(tokens)
    for last in range(6):
        torch.testing.assert_close(whole[:, last], branches(tokens[:, : last + 1])[:, -1])
    later = torch.cat((tokens[:, :1], torch.randn(2, 5, 12)), dim=1)
    assert not torch.allclose(branches(later)[:, 1:], whole[:, 1:])
