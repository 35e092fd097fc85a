"""Images as tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """Images (batch, channels, side, side) to tokens (batch, patches + 1, width): patches, class token, positions."""

    def __init__(self, image_size: int, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size={image_size} is not a multiple of patch_size={patch_size}")
        self.image_shape = (channels, image_size, image_size)
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // patch_size) ** 2 + 1, width))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images of shape {tuple(images.shape[1:])} given, {self.image_shape} expected")
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat((self.class_token.expand(len(tokens), -1, -1), tokens), dim=1) + self.positions


class ClassToken(nn.Module):
    """The first token of (batch, tokens, width)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]
