"""Transforms T(z, *inputs), which take a gradient's place. Each contains a two-layer structure, affine–σ–affine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dense(nn.Module):
    """`T(z, x) = W₂ σ(W₁ z + U x + b₁) + b₂` on vectors, (batch, width).

    Args:
        width: of z.
        hidden: width of the hidden layer.
        inputs: width of an injected input x; 0: none is taken.
        activation: σ; None: ReLU.
    """

    def __init__(self, width: int, hidden: int, *, inputs: int = 0, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.injection = nn.Linear(inputs, hidden, bias=False) if inputs else None
        self.activation = activation or nn.ReLU()

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        """(batch, width), like z."""
        output: Tensor = self.outer(self.activation(inject(self.inner(z), self.injection, inputs)))
        return output


class Conv(nn.Module):
    """Pre-activation residual branch on images: norm–σ–conv–norm–σ–conv, (batch, channels, height, width).

    Normalisation is by groups within a sample, so rows stay independent in every reading.

    Args:
        channels: of z; a multiple of `groups`.
        hidden: channels between the two convolutions.
        inputs: channels of an injected input x, added after the first convolution; 0: none is taken.
        groups: of the first normalisation; the second has one.
        kernel: odd size of the convolutions.
    """

    def __init__(self, channels: int, hidden: int, *, inputs: int = 0, groups: int = 4, kernel: int = 3) -> None:
        super().__init__()
        check_odd(kernel)
        self.norm = nn.GroupNorm(groups, channels)
        self.inner = nn.Conv2d(channels, hidden, kernel, padding=kernel // 2, bias=False)
        self.middle = nn.GroupNorm(1, hidden)
        self.outer = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2)
        self.injection = nn.Conv2d(inputs, hidden, 1, bias=False) if inputs else None
        self.activation = nn.ReLU()

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        """(batch, channels, height, width), like z."""
        hidden = inject(self.inner(self.activation(self.norm(z))), self.injection, inputs)
        output: Tensor = self.outer(self.activation(self.middle(hidden)))
        return output


class ConvNeXt(nn.Module):
    """The branch of a ConvNeXt block on images, (batch, channels, height, width): depthwise convolution, norm, MLP.

    `T(z) = γ·W₂ GELU(W₁ norm(depthwise(z)))`, so that gradient descent with it is the ConvNeXt. Source: Liu et al.,
    "A ConvNet for the 2020s", CVPR 2022.

    Args:
        channels: of z.
        hidden: of the MLP; None: 4 times the channels.
        inputs: channels of an injected input x, added after the depthwise convolution; 0: none is taken.
        kernel: odd size of the depthwise convolution.
        layer_scale: initial value of γ, one for each channel.
    """

    def __init__(
        self,
        channels: int,
        hidden: int | None = None,
        *,
        inputs: int = 0,
        kernel: int = 7,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        check_odd(kernel)
        hidden = hidden or 4 * channels
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.injection = nn.Conv2d(inputs, channels, 1, bias=False) if inputs else None
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )
        self.layer_scale = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        """(batch, channels, height, width), like z."""
        hidden = inject(self.depthwise(z), self.injection, inputs)
        output: Tensor = self.layer_scale * self.mlp(hidden.movedim(1, -1))
        return output.movedim(-1, 1)


class AttentionMLP(nn.Module):
    """The branch of a pre-norm transformer block on tokens, (batch, tokens, width): `T(z) = A(z) + MLP(z + A(z))`.

    Gradient descent with it is the ViT: `z + T(z)` is the block. Source: Dosovitskiy et al., ICLR 2021.

    Args:
        width: of a token; a multiple of `heads`.
        heads: of the attention.
        hidden: of the MLP; None: 4 times the width.
        inputs: width of injected tokens x, added to the attention's input, before the norm; 0: none are taken.
        scale: factor on T; a value below 1 helps an equilibrium's cell to converge.
        causal: whether a token attends to itself and earlier ones only.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int | None = None,
        *,
        inputs: int = 0,
        scale: float = 1.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden or 4 * width
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.injection = nn.Linear(inputs, width, bias=False) if inputs else None
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.scale, self.causal = scale, causal

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        """(batch, tokens, width), like z."""
        tokens = self.norm(inject(z, self.injection, inputs))
        mixed = self._attended(tokens)
        output: Tensor = self.scale * (mixed + self.mlp(z + mixed))
        return output

    def _attended(self, tokens: Tensor) -> Tensor:
        """What `self.attention` computes; its own forward takes no batch of weights, which the parallel reading has."""
        packed = F.linear(tokens, self.attention.in_proj_weight, self.attention.in_proj_bias)
        q, k, v = packed.unflatten(-1, (3, self.attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2)
        output: Tensor = self.attention.out_proj(mixed)
        return output


class Sum(nn.Module):
    """`T(z, x) = Σ T_i(z, x)`."""

    def __init__(self, *terms: nn.Module) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        """Like z."""
        first, *others = self.terms
        total: Tensor = first(z, *inputs)
        for term in others:
            total = total + term(z, *inputs)
        return total


class Fidelity(nn.Module):
    """`G(z, x) = x − z`, the negative gradient of `½‖z − x‖²`: ties an equilibrium to its input. No parameters."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Like z; x has its shape."""
        return x - z


def check_odd(kernel: int) -> None:
    if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel={kernel!r} must be odd, so that the convolution keeps the image's size")


def inject(hidden: Tensor, injection: nn.Module | None, inputs: tuple[Tensor, ...]) -> Tensor:
    """`hidden + U x`, if the transform was made with `inputs=`."""
    if injection is None:
        return hidden
    if len(inputs) != 1:
        raise TypeError(f"this transform was made with inputs=…: call it as T(z, x), not with {len(inputs)} inputs")
    added: Tensor = hidden + injection(inputs[0])
    return added
