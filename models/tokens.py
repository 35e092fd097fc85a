"""Images, vectors and sequences as tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """Images (batch, channels, side, side) to tokens (batch, patches + 1, width): patches, class token, positions.

    Args:
        image_size, patch_size, channels, width: sides of image and patch, channels of the images, width of a token.
        dropout: share of the tokens' entries that is dropped in training.
        normal: whether class token and positions start from N(0, 1), not from 0 and N(0, 0.02²).
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels: int,
        width: int,
        *,
        dropout: float = 0.0,
        normal: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size={image_size} is not a multiple of patch_size={patch_size}")
        self.image_shape = (channels, image_size, image_size)
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // patch_size) ** 2 + 1, width))
        if normal:
            nn.init.normal_(self.class_token)
            nn.init.normal_(self.positions)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images of shape {tuple(images.shape[1:])} given, {self.image_shape} expected")
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_token.expand(len(patches), -1, -1), patches), dim=1) + self.positions
        dropped: Tensor = self.dropout(tokens)
        return dropped


class VectorTokens(nn.Module):
    """Vectors (batch, features) to tokens (batch, features + 1, width): each number times its own direction.

    Source: Gorishniy et al., "Revisiting Deep Learning Models for Tabular Data", NeurIPS 2021.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(features, width) / width**0.5)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, features + 1, width))

    def forward(self, vectors: Tensor) -> Tensor:
        if vectors.ndim != 2 or vectors.shape[1] != len(self.directions):
            raise ValueError(f"vectors of shape {tuple(vectors.shape)} given, (batch, {len(self.directions)}) expected")
        tokens = vectors[:, :, None] * self.directions
        return torch.cat((self.class_token.expand(len(tokens), -1, -1), tokens), dim=1) + self.positions


class SequenceTokens(nn.Module):
    """At most `length` tokens, (batch, tokens, channels), to (batch, tokens + 1, width): a linear map, positions."""

    def __init__(self, length: int, channels: int, width: int) -> None:
        super().__init__()
        self.length, self.lift = length, nn.Linear(channels, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, length + 1, width))

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 3 or tokens.shape[1] > self.length or tokens.shape[2] != self.lift.in_features:
            expected = f"(batch, at most {self.length}, {self.lift.in_features})"
            raise ValueError(f"tokens of shape {tuple(tokens.shape)} given, {expected} expected")
        lifted = torch.cat((self.class_token.expand(len(tokens), -1, -1), self.lift(tokens)), dim=1)
        return lifted + self.positions[:, : lifted.shape[1]]


class ClassToken(nn.Module):
    """The first token of (batch, tokens, width)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]
