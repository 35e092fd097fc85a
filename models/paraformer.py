"""The Para-Former: transformer branches side by side on the same tokens, summed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tokens import Tokens


class ParaFormer(nn.Module):
    """An image classifier whose depth lies side by side: `y = Σ_i Branch_i(x_0)`, then norm and head.

    Patches, a class token and positions make x_0; every branch is a stack of pre-norm transformer blocks with weights
    of its own, and all branches see the same x_0. The class token of the sum is normalised and classified. Weights of
    all branches are stacked, so the branches run as one batched computation or as a loop, with the same `state_dict`.
    Source: ParaFormer, arXiv 2510.15425 (defaults as published); Wang, Li, arXiv 2407.21670.

    Args:
        image_size: side of the square images, a multiple of `patch_size`.
        patch_size: side of a patch.
        channels: of the images.
        classes: number of classes.
        branches: B.
        depth: blocks a branch.
        width: of a token; a multiple of `heads`.
        heads: of the attention.
        hidden: width of a block's MLP.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        channels: int,
        classes: int,
        branches: int = 8,
        depth: int = 2,
        width: int = 192,
        heads: int = 3,
        hidden: int = 768,
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "patch_size": patch_size, "channels": channels, "classes": classes}
        sizes |= {"branches": branches, "depth": depth, "width": width, "heads": heads, "hidden": hidden}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be an integer of at least 1")
        if width % heads:
            raise ValueError(f"width={width} is not a multiple of heads={heads}")
        self.batched: bool | None = None
        """True: branches as one batched computation; False: a loop; None: the cheaper of the two."""
        self.branches = branches
        self.tokens = Tokens(image_size, patch_size, channels, width)
        self.blocks = nn.ModuleList(_StackedBlock(branches, width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, classes) logits of (batch, channels, image_size, image_size) images."""
        tokens = self.tokens(images)
        batched = self._batching_pays(tokens) if self.batched is None else self.batched
        groups = [slice(None)] if batched else [slice(i, i + 1) for i in range(self.branches)]
        outputs = [self._run(tokens, group) for group in groups]
        logits: Tensor = self.head(self.norm(torch.cat(outputs).sum(dim=0)[:, 0]))
        return logits

    def _run(self, tokens: Tensor, group: slice) -> Tensor:
        """(branches of the group, batch, tokens, width)."""
        count = len(range(self.branches)[group])
        x = tokens.expand(count, *tokens.shape)
        for block in self.blocks:
            x = block(x, group)
        return x

    def _batching_pays(self, tokens: Tensor) -> bool:
        """With few tokens a loop waits for dispatch; with many, its smaller working set is kinder to the cache."""
        return tokens.is_cuda or tokens.shape[0] * tokens.shape[1] <= _TOKENS_WORTH_BATCHING

    def extra_repr(self) -> str:
        return f"branches={self.branches}, batched={self.batched}"


_TOKENS_WORTH_BATCHING = 256


class _StackedBlock(nn.Module):
    """A pre-norm transformer block for every branch: parameters have the branches in dim 0."""

    def __init__(self, branches: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.Parameter(torch.stack((torch.ones(2, branches, width), torch.zeros(2, branches, width)), 1))
        self.qkv, self.qkv_bias = _linear(branches, width, 3 * width)
        self.project, self.project_bias = _linear(branches, width, width)
        self.expand, self.expand_bias = _linear(branches, width, hidden)
        self.contract, self.contract_bias = _linear(branches, hidden, width)

    def forward(self, x: Tensor, group: slice) -> Tensor:
        """(branches, batch, tokens, width) to the same, for the branches of the group."""
        branches, batch, tokens, width = x.shape

        def linear(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return torch.baddbmm(bias[group, None], y.reshape(branches, batch * tokens, -1), weight[group])

        def norm(y: Tensor, index: int) -> Tensor:
            scale, shift = self.norms[index, :, group, None, None]
            return F.layer_norm(y, (width,)) * scale + shift

        qkv = linear(norm(x, 0), self.qkv, self.qkv_bias)
        q, k, v = qkv.view(branches * batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + linear(mixed, self.project, self.project_bias).view(x.shape)
        inner = F.gelu(linear(norm(x, 1), self.expand, self.expand_bias))
        return x + linear(inner, self.contract, self.contract_bias).view(x.shape)


def _linear(branches: int, inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Stacked weights, (branches, inputs, outputs), and biases, initialised as `nn.Linear` is."""
    bound = 1 / math.sqrt(inputs)
    weight = torch.empty(branches, inputs, outputs).uniform_(-bound, bound)
    return nn.Parameter(weight), nn.Parameter(torch.empty(branches, outputs).uniform_(-bound, bound))
