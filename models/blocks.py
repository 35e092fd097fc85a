"""The transforms that make up a network, whatever its method and reading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .transforms import AttentionMLP, Conv, ConvNeXt, Dense
from .well_posed import ContractiveConv, ContractiveDense, MonotoneConv, MonotoneDense


@dataclass(frozen=True)
class Blocks:
    """Functions that make transforms for one shape of state. Each call makes a module with new weights."""

    free: Callable[[], nn.Module]
    """T(z), unconstrained."""
    monotone: Callable[[], nn.Module]
    """P(z), whose proximal step is well posed."""
    injected: Callable[[], nn.Module]
    """P(z, x), a contraction in z, or small at initialisation; x is like z."""


def dense(width: int, hidden: int) -> Blocks:
    """On vectors, (batch, width); `hidden` is the width of the hidden layer."""
    return Blocks(
        lambda: Dense(width, hidden),
        lambda: MonotoneDense(width, hidden),
        lambda: ContractiveDense(width, hidden, inputs=width),
    )


def convolutional(channels: int, hidden: int, *, groups: int = 4) -> Blocks:
    """On images, (batch, channels, height, width), pre-activation; `hidden` channels between the convolutions."""
    return Blocks(
        lambda: Conv(channels, hidden, groups=groups),
        lambda: MonotoneConv(channels, hidden),
        lambda: ContractiveConv(channels, hidden, inputs=channels),
    )


def convnext(channels: int, hidden: int, *, kernel: int = 7) -> Blocks:
    """On images, ConvNeXt's branch; the proximal transforms are convolutional. Its equilibrium is not certified."""
    return Blocks(
        lambda: ConvNeXt(channels, hidden, kernel=kernel),
        lambda: MonotoneConv(channels, hidden),
        lambda: ConvNeXt(channels, hidden, inputs=channels, kernel=kernel, layer_scale=0.1),
    )


def attention(width: int, hidden: int, *, heads: int = 3) -> Blocks:
    """On tokens, (batch, tokens, width), attention and MLP; P acts on each token. Its equilibrium is not certified."""
    return Blocks(
        lambda: AttentionMLP(width, heads, hidden),
        lambda: MonotoneDense(width, hidden),
        lambda: AttentionMLP(width, heads, hidden, inputs=width, scale=0.1),
    )
