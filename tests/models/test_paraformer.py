"""The Para-Former: batched equals a loop, and one branch is PyTorch's own transformer."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import ParaFormer

SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "channels": 2,
    "classes": 3,
    "branches": 3,
    "depth": 2,
    "width": 12,
    "heads": 3,
    "hidden": 20,
}


def build(**changes):
    model = ParaFormer(**{**SMALL, **changes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # so that norms, biases and the class token count
    return model


def images(batch=4):
    return torch.randn(batch, 2, 8, 8)


def as_loop(model, batched=False):
    twin = copy.deepcopy(model)
    twin.batched = batched
    return twin


def stacked(model):
    """Every parameter of the blocks, with the branches in dim 0."""
    for block in model.body.blocks:
        yield from block.parameters()


def gradients(model, x):
    return torch.autograd.grad(model(x).square().sum(), list(model.parameters()))


# --- ways of evaluation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("branches", "depth"), [(1, 1), (2, 3), (5, 2)])
def test_batched_equals_loop(branches, depth):
    model, x = build(branches=branches, depth=depth), images()
    torch.testing.assert_close(as_loop(model, True)(x), as_loop(model)(x), rtol=0, atol=1e-11)


def test_batched_equals_loop_in_gradients():
    model, x = build(), images()
    torch.testing.assert_close(gradients(as_loop(model, True), x), gradients(as_loop(model), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 200])  # on both sides of the number of tokens at which batching stops to pay
def test_the_cheaper_form_agrees_with_both(batch):
    model, x = build(), images(batch)
    assert model.batched is None
    for batched in (True, False):
        torch.testing.assert_close(model(x), as_loop(model, batched)(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("batched", [True, False, None])
def test_an_empty_batch(batched):
    model, x = as_loop(build(), batched), images(0).requires_grad_()
    output = model(x)
    output.sum().backward()
    assert (len(output), x.grad.shape) == (0, x.shape)


def test_single_precision_agrees_too():
    model, x = build().float(), images().float()
    torch.testing.assert_close(as_loop(model, True)(x), as_loop(model)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batched", [True, False])
def test_state_dict_is_interchangeable(batched):
    source, target, x = build(), build(), images()
    source.batched, target.batched = batched, not batched
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target(x), source(x), rtol=0, atol=1e-11)


# --- the mathematics ---------------------------------------------------------------------------------------------


def encoder_layer(block, branch):
    """PyTorch's pre-norm layer with the weights of one branch of a block."""
    layer = nn.TransformerEncoderLayer(
        SMALL["width"],
        SMALL["heads"],
        SMALL["hidden"],
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    pairs = {
        "self_attn.in_proj_weight": block.qkv[branch].T,
        "self_attn.in_proj_bias": block.qkv_bias[branch],
        "self_attn.out_proj.weight": block.project[branch].T,
        "self_attn.out_proj.bias": block.project_bias[branch],
        "linear1.weight": block.expand[branch].T,
        "linear1.bias": block.expand_bias[branch],
        "linear2.weight": block.contract[branch].T,
        "linear2.bias": block.contract_bias[branch],
        "norm1.weight": block.norms[branch, 0, 0],
        "norm1.bias": block.norms[branch, 0, 1],
        "norm2.weight": block.norms[branch, 1, 0],
        "norm2.bias": block.norms[branch, 1, 1],
    }
    layer.load_state_dict({name: value.detach() for name, value in pairs.items()})
    return layer


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("branches", [1, 3])
def test_output_is_the_head_of_a_sum_of_pytorch_transformers(branches, batched):
    model, x = build(branches=branches), images()
    model.batched = batched
    pixels = F.unfold(x, 4, stride=4).transpose(1, 2)  # patches in rows, left to right, top to bottom
    tokens = pixels @ model.tokens.patches.weight.flatten(1).T + model.tokens.patches.bias
    tokens = torch.cat((model.tokens.class_token.expand(len(x), 1, -1), tokens), dim=1) + model.tokens.positions
    total = 0
    for branch in range(branches):
        hidden = tokens
        for block in model.body.blocks:
            hidden = encoder_layer(block, branch)(hidden)
        total = total + hidden
    torch.testing.assert_close(model(x), model.head(model.norm(total[:, 0])), rtol=0, atol=1e-11)


def test_order_of_the_branches_does_not_matter():
    model, x = build(), images()
    before = model(x)
    with torch.no_grad():
        for parameter in stacked(model):
            parameter.copy_(parameter[[2, 0, 1]].clone())
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-11)


@pytest.mark.parametrize("branch", range(3))
def test_every_branch_counts(branch):
    model, x = build(), images()
    before = model(x)
    with torch.no_grad():
        for parameter in stacked(model):
            parameter[branch] = 0
    assert (model(x) - before).abs().max() > 1e-3


@pytest.mark.parametrize(("branches", "depth"), [(1, 1), (1, 2), (4, 1), (3, 2)])
def test_parameters_are_those_of_branches_times_depth_layers(branches, depth):
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    layer = nn.TransformerEncoderLayer(SMALL["width"], SMALL["heads"], SMALL["hidden"])
    model = build(branches=branches, depth=depth)
    assert count(model.body.blocks) == branches * depth * count(layer)
    assert len(model.body.blocks) == depth


def test_defaults_are_those_published():
    model = ParaFormer(image_size=32, patch_size=16, channels=3, classes=10)
    assert (model.branches, len(model.body.blocks), model.head.in_features) == (8, 2, 192)
    assert model.body.blocks[0].heads == 3
    assert model.body.blocks[0].expand.shape == (8, 192, 768)


def test_weights_start_as_those_of_linear_layers():
    weight = ParaFormer(**{**SMALL, "width": 48, "hidden": 200}).body.blocks[0].expand
    assert weight.abs().max() <= 1 / math.sqrt(48)
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * 48), rel=0.05)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 2, 8, 4), (4, 2, 16, 16), (2, 8, 8)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"images of shape .* given, \(2, 8, 8\) expected"):
        build()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "image_size=8 is not a multiple of patch_size=3"),
        ({"heads": 5}, "width=12 is not a multiple of heads=5"),
        ({"branches": 0}, "branches=0 must be an integer of at least 1"),
        ({"depth": 0}, "depth=0 must be an integer of at least 1"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ParaFormer(**{**SMALL, **changes})
