"""Whole networks: a method, a reading, and what surrounds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from .blocks import Blocks, attention, convnext, convolutional, dense
from .methods import APG2, Method
from .readings import Explicit, Reading
from .tokens import ClassToken, Tokens

MakeBlocks = Callable[[int], Blocks]
"""From the channels of a stage to its blocks."""


def vector_network(
    inputs: int,
    outputs: int,
    method: Method | str = "gd",
    *,
    reading: Reading = Explicit(),
    width: int = 12,
    hidden: int = 24,
    depth: int = 6,
) -> nn.Sequential:
    """(batch, inputs) → (batch, outputs): a linear lift to `width`, the body, a linear read-out.

    Args:
        inputs, outputs: widths.
        method: a `Method` or its key.
        reading: `Explicit()`, `Implicit()`, `InfiniteDepth()` or `Sweeps(k)`.
        width: of the state.
        hidden: width of the layer inside a transform.
        depth: number of layers.
    """
    body = reading.body(method, dense(width, hidden), depth)
    return nn.Sequential(nn.Linear(inputs, width), body, nn.Linear(width, outputs))


def image_network(
    channels: int,
    classes: int,
    method: Method | str = "gd",
    *,
    reading: Reading = Explicit(),
    blocks: MakeBlocks = lambda width: convolutional(width, width),
    widths: Sequence[int] = (16, 32, 64),
    depths: Sequence[int] = (3, 3, 3),
    patch: int = 1,
    pool: int = 1,
) -> nn.Sequential:
    """(batch, channels, height, width) → (batch, classes) logits: stem, stages with downsampling between, head.

    Args:
        channels, classes: of the images.
        method, reading: as in `vector_network`.
        blocks: from a stage's width to its transforms.
        widths, depths: of the stages, equally many; each stage after the first halves the image's sides.
        patch: side of the stem's patches; 1: a 3×3 convolution that keeps the size.
        pool: side of the grid to which the last stage is averaged before the linear head.
    """
    if len(widths) != len(depths) or not widths:
        raise ValueError(f"widths={tuple(widths)} and depths={tuple(depths)} must have the same length, at least 1")
    first = nn.Conv2d(channels, widths[0], 3, padding=1) if patch == 1 else nn.Conv2d(channels, widths[0], patch, patch)
    layers: list[nn.Module] = [first]
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        if stage:
            before = widths[stage - 1]
            layers += [nn.GroupNorm(1, before), nn.Conv2d(before, width, 2, stride=2)]
        layers.append(reading.body(method, blocks(width), depth))
    head = [nn.GroupNorm(1, widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(pool), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(pool**2 * widths[-1], classes))


def wide_shallow(
    classes: int, method: Method | str = "gd", *, reading: Reading = Explicit(), hidden: int | None = None
) -> nn.Module:
    """The wide and shallow form for CIFAR: stages of 160, 320 and 640 channels, two layers each.

    Args:
        classes, method, reading: as in `image_network`.
        hidden: channels inside a transform of the first stage, growing with the stages; None: as many as outside.
    """
    widths = (160, 320, 640)
    blocks = _growing(convolutional, widths[0], hidden)
    return image_network(3, classes, method, reading=reading, blocks=blocks, widths=widths, depths=(2, 2, 2))


def narrow_deep(
    classes: int, method: Method | str = "gd", *, reading: Reading = Explicit(), hidden: int | None = None
) -> nn.Module:
    """The narrow and deep form for CIFAR: stages of 16, 32 and 64 channels, 18 layers each; otherwise like the wide."""
    widths = (16, 32, 64)
    blocks = _growing(convolutional, widths[0], hidden)
    return image_network(3, classes, method, reading=reading, blocks=blocks, widths=widths, depths=(18, 18, 18))


def convnext_form(
    classes: int,
    method: Method | str = APG2().learned(),
    *,
    reading: Reading = Explicit(),
    widths: Sequence[int] = (96, 192, 384, 768),
    depths: Sequence[int] = (3, 3, 9, 3),
    patch: int = 4,
    channels: int = 3,
    hidden: int | None = None,
) -> nn.Module:
    """The ConvNeXt with a method in place of its residual sums, by default the tiny one; one stage makes it isotropic.

    Args:
        classes, method, reading, widths, depths, patch, channels: as in `image_network`.
        hidden: channels inside a transform of the first stage, growing with the stages; None: four times those outside.
    """
    return image_network(
        channels,
        classes,
        method,
        reading=reading,
        blocks=_growing(convnext, widths[0], hidden or 4 * widths[0]),
        widths=widths,
        depths=depths,
        patch=patch,
    )


def vit_form(
    classes: int,
    method: Method | str = APG2().learned(),
    *,
    reading: Reading = Explicit(),
    image_size: int = 224,
    patch_size: int = 16,
    channels: int = 3,
    width: int = 192,
    heads: int = 3,
    hidden: int | None = None,
    depth: int = 12,
) -> nn.Module:
    """The ViT with a method in place of its residual sums; by default the tiny one."""
    body = reading.body(method, attention(width, hidden or 4 * width, heads=heads), depth)
    tokens = Tokens(image_size, patch_size, channels, width)
    return nn.Sequential(tokens, body, ClassToken(), nn.LayerNorm(width), nn.Linear(width, classes))


def _growing(make: Callable[[int, int], Blocks], first: int, hidden: int | None) -> MakeBlocks:
    """Blocks whose hidden layer is `hidden` wide in the first stage, and keeps its ratio to the stage's width."""
    return lambda width: make(width, (hidden or first) * width // first)
