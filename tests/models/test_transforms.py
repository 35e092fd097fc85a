"""The transforms that take the place of a gradient: shapes, formulas, injection, independent rows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import AttentionMLP, Conv, ConvNeXt, Dense, Fidelity, OptDNN, Sum


def numbers(tensor):
    return tensor.detach().cpu().numpy()


@pytest.mark.parametrize(
    ("transform", "z", "x"),
    [
        (lambda: Dense(4, 7), (3, 4), None),
        (lambda: Dense(4, 7, inputs=2), (3, 4), (3, 2)),
        (lambda: Conv(8, 5), (3, 8, 6, 4), None),
        (lambda: Conv(8, 5, inputs=2), (3, 8, 6, 4), (3, 2, 6, 4)),
        (lambda: Conv(6, 5, groups=3, kernel=5), (3, 6, 4, 4), None),
        (lambda: Conv(6, 5, groups=1, kernel=1), (3, 6, 4, 4), None),
        (lambda: ConvNeXt(8, 12), (3, 8, 6, 4), None),
        (lambda: ConvNeXt(8, inputs=2, kernel=3), (3, 8, 6, 4), (3, 2, 6, 4)),
        (lambda: AttentionMLP(6, 3, 8), (3, 5, 6), None),
        (lambda: AttentionMLP(6, 2, inputs=4), (3, 5, 6), (3, 5, 4)),
        (lambda: Sum(Fidelity(), Dense(4, 7, inputs=4)), (3, 4), (3, 4)),
        (Fidelity, (3, 4), (3, 4)),
        (Fidelity, (3, 2, 4, 4), (3, 2, 4, 4)),
    ],
)
def test_output_has_the_shape_of_the_argument(transform, z, x):
    inputs = () if x is None else (torch.randn(x),)
    assert transform()(torch.randn(z), *inputs).shape == z


# --- formulas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "sigma"),
    [(None, lambda h: np.maximum(h, 0)), (nn.Tanh(), np.tanh)],
    ids=["default ReLU", "Tanh"],
)
@pytest.mark.parametrize("inputs", [0, 2])
def test_dense_is_its_formula(inputs, activation, sigma):
    transform = Dense(4, 7, inputs=inputs, activation=activation)
    z, x = torch.randn(3, 4), torch.randn(3, inputs)
    hidden = numbers(z) @ numbers(transform.inner.weight).T + numbers(transform.inner.bias)
    if inputs:
        hidden += numbers(x) @ numbers(transform.injection.weight).T
    expected = sigma(hidden) @ numbers(transform.outer.weight).T + numbers(transform.outer.bias)
    output = transform(z, x) if inputs else transform(z)
    np.testing.assert_allclose(numbers(output), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3])
def test_conv_is_its_formula(kernel):
    transform = Conv(6, 5, inputs=2, groups=3, kernel=kernel)
    for parameter in transform.parameters():
        nn.init.normal_(parameter)
    z, x = torch.randn(3, 6, 4, 4), torch.randn(3, 2, 4, 4)
    grouped = z.view(3, 3, -1)
    scaled = (grouped - grouped.mean(2, True)) / (grouped.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    scaled = scaled.view_as(z) * transform.norm.weight.view(-1, 1, 1) + transform.norm.bias.view(-1, 1, 1)
    hidden = F.conv2d(scaled.relu(), transform.inner.weight, padding=kernel // 2)
    hidden = hidden + torch.einsum("oi,bihw->bohw", transform.injection.weight[:, :, 0, 0], x)
    hidden = F.layer_norm(hidden, hidden.shape[1:])
    hidden = hidden * transform.middle.weight.view(-1, 1, 1) + transform.middle.bias.view(-1, 1, 1)
    expected = F.conv2d(hidden.relu(), transform.outer.weight, transform.outer.bias, padding=kernel // 2)
    torch.testing.assert_close(transform(z, x), expected, rtol=0, atol=1e-10)


def test_fidelity_is_the_negative_gradient_of_half_the_squared_distance():
    z, x = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    (gradient,) = torch.autograd.grad((z - x).square().sum() / 2, z)
    torch.testing.assert_close(Fidelity()(z, x), -gradient, rtol=0, atol=1e-14)


def test_one_step_of_gd_on_the_fidelity_lands_on_the_input():
    z, x = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(OptDNN("gd", [Fidelity()])(z, x), x, rtol=0, atol=1e-14)


# --- rows and inputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("transform", "shape"), [(lambda: Dense(4, 7), (4,)), (lambda: Conv(8, 5), (8, 6, 6))], ids=["dense", "conv"]
)
def test_rows_are_independent(transform, shape, training):
    transform = transform().train(training)
    z = torch.logspace(-2, 2, 5).view(-1, *[1] * len(shape)) * torch.randn(5, *shape)
    alone = torch.cat([transform(row[None]) for row in z])
    torch.testing.assert_close(transform(z), alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("transform", "z", "x"),
    [
        (lambda: Dense(4, 7, inputs=2), (3, 4), (3, 2)),
        (lambda: Conv(8, 5, inputs=2), (3, 8, 6, 6), (3, 2, 6, 6)),
    ],
    ids=["dense", "conv"],
)
def test_injection_needs_exactly_one_input(transform, z, x):
    transform, z, x = transform(), torch.randn(z), torch.randn(x)
    assert (transform(z, x) - transform(z, torch.zeros_like(x))).abs().max() > 1e-3
    for inputs in [(), (x, x)]:
        with pytest.raises(TypeError, match=rf"call it as T\(z, x\), not with {len(inputs)} inputs"):
            transform(z, *inputs)


@pytest.mark.parametrize("kernel", [2, 4, 0, -3])
def test_kernel_that_is_not_odd_is_refused(kernel):
    with pytest.raises(ValueError, match=rf"kernel={kernel} must be odd"):
        Conv(8, 5, kernel=kernel)


def test_gradient_descent_with_convnext_is_torchvisions_block():
    from torchvision.models.convnext import CNBlock

    transform, block = ConvNeXt(6, 24, layer_scale=0.3), CNBlock(6, 0.3, stochastic_depth_prob=0.0).double()
    names = {"depthwise": "block.0", "mlp.0": "block.2", "mlp.1": "block.3", "mlp.3": "block.5"}
    state = {"layer_scale": block.layer_scale.flatten()}
    for ours, theirs in names.items():
        module = block.get_submodule(theirs)
        state |= {f"{ours}.{key}": value for key, value in module.state_dict().items()}
    transform.load_state_dict(state)
    z = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(OptDNN("gd", [transform])(z), block(z), rtol=0, atol=1e-12)


def test_gradient_descent_with_attention_and_mlp_is_a_pre_norm_transformer_layer():
    transform = AttentionMLP(6, 2, 10)
    layer = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    names = {"norm": "norm1", "attention": "self_attn", "mlp.0": "norm2", "mlp.1": "linear1", "mlp.3": "linear2"}
    state = {}
    for ours, theirs in names.items():
        module = layer.get_submodule(theirs)
        state |= {f"{ours}.{key}": value for key, value in module.state_dict().items()}
    transform.load_state_dict(state)
    z = torch.randn(2, 5, 6)
    torch.testing.assert_close(OptDNN("gd", [transform])(z), layer(z), rtol=0, atol=1e-12)


def test_a_sum_is_the_sum_of_its_terms():
    terms = [Dense(4, 7, inputs=4), Fidelity(), Dense(4, 2, inputs=4)]
    z, x = torch.randn(2, 3, 4)
    torch.testing.assert_close(Sum(*terms)(z, x), terms[0](z, x) + (x - z) + terms[2](z, x), rtol=0, atol=1e-14)


def test_causal_attention_is_that_of_each_beginning_alone():
    transform, z, x = AttentionMLP(6, 2, 10, inputs=4, causal=True), torch.randn(3, 5, 6), torch.randn(3, 5, 4)
    whole = transform(z, x)
    for last in range(5):
        alone = transform(z[:, : last + 1], x[:, : last + 1])
        torch.testing.assert_close(whole[:, last], alone[:, -1])
    blind = AttentionMLP(6, 2, 10, inputs=4)
    blind.load_state_dict(transform.state_dict())
    assert not torch.allclose(blind(z, x)[:, 0], whole[:, 0])
