"""The Para-Former: transformer branches side by side on the same tokens, summed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn

from .branches import Branches, check_positive
from .tokens import SequenceTokens, Tokens, VectorTokens

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from .sharding import ShardedBranches


CODED_DROPOUT = 0.1
"""Dropout of the published code."""


class _ParaFormer(nn.Module):
    """Embedding → class token and positions x_0 → `Σ_i Branch_i(x_0)` → norm and head on the class token."""

    def __init__(self, tokens: nn.Module, classes: int, branches: Branches, width: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.body: Branches | ShardedBranches = branches
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    @property
    def branches(self) -> int:
        """B, the number of branches."""
        return self.body.count

    @property
    def batched(self) -> bool | None:
        """False: a loop over the branches; True, None: batched, on a CPU in groups that fit its caches."""
        return self.body.batched

    @batched.setter
    def batched(self, value: bool | None) -> None:
        self.body.batched = value

    def forward(self, x: Tensor, *, branches: int | None = None) -> Tensor:
        """(batch, classes) logits; with `branches=n`, those of the first n branches alone."""
        return self._read(self.body(self.tokens(x), first=branches))

    if TYPE_CHECKING:  # a module's call is typed Any
        __call__ = forward

    def prefixes(self, x: Tensor) -> Tensor:
        """(branches, batch, classes): the logits of the first 1 … B branches."""
        return self._read(self._whole().sums(self.tokens(x)))

    def kept(self: Self, which: Sequence[int]) -> Self:
        """A copy with these branches alone (compression)."""
        return self._around(self._whole().kept(which))

    def joined(self: Self, other: _ParaFormer) -> Self:
        """A copy with the other's branches in addition to its own (expansion); embedding and head stay its own.

        `model.joined(FreshParaFormer(…))` adds branches that are yet to be trained.
        """
        return self._around(self._whole().joined(other._whole()))

    def sharded(self: Self, mesh: DeviceMesh) -> Self:
        """A copy with this rank's share of the branches (`ShardedBranches`), the rest replicated."""
        from .sharding import ShardedBranches  # not every build has torch.distributed

        return self._around(ShardedBranches(self._whole(), mesh))

    def _whole(self) -> Branches:
        if not isinstance(self.body, Branches):
            raise TypeError("the branches are spread over several devices: call this before `sharded`")
        return self.body

    def _around(self: Self, body: Branches | ShardedBranches) -> Self:
        twin = copy.deepcopy(self)
        twin.body = body
        return twin

    def _read(self, summed: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(summed[..., 0, :]))
        return logits


Self = TypeVar("Self", bound=_ParaFormer)


class ParaFormer(_ParaFormer):
    """An image classifier whose depth lies side by side: `y = Σ_i Branch_i(x_0)`, then norm and head.

    Patches, a class token and positions make x_0, the input of all branches. Plain training is that of any module;
    progressive training takes a step for the first branch, for the first two, …:

        for branches in range(1, model.branches + 1):
            loss(model(images, branches=branches), labels).backward()
            ...

    Branches can be dropped and added afterwards (`kept`, `joined`), and `prefixes` shows what each adds. Source:
    ParaFormer, arXiv 2510.15425 (defaults as published); Wang, Li, arXiv 2407.21670.

    Args:
        image_size: side of the square images, a multiple of `patch_size`.
        patch_size: side of a patch.
        channels: of the images.
        classes: number of classes.
        branches: B.
        depth, width, heads, hidden: as in `Branches`.
        as_coded: the network of the code published with the paper: each block adds to its normalised input, queries,
            keys and values have no bias, dropout is 0.1, also on the tokens, and class token and positions start from
            N(0, 1). It is not the network of the paper's equations, which is the default.
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
        as_coded: bool = False,
    ) -> None:
        sizes = {"image_size": image_size, "patch_size": patch_size, "channels": channels, "classes": classes}
        for name, value in sizes.items():
            check_positive(name, value)
        dropout = CODED_DROPOUT if as_coded else 0.0
        body = Branches(
            branches,
            depth=depth,
            width=width,
            heads=heads,
            hidden=hidden,
            normalised_skip=as_coded,
            qkv_bias=not as_coded,
            dropout=dropout,
        )
        tokens = Tokens(image_size, patch_size, channels, width, dropout=dropout, normal=as_coded)
        super().__init__(tokens, classes, body, width)


class VectorParaFormer(_ParaFormer):
    """The Para-Former of vectors, (batch, features): each feature is a token. Other arguments as in `ParaFormer`."""

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        branches: int = 8,
        depth: int = 2,
        width: int = 192,
        heads: int = 3,
        hidden: int = 768,
    ) -> None:
        for name, value in {"features": features, "classes": classes}.items():
            check_positive(name, value)
        body = Branches(branches, depth=depth, width=width, heads=heads, hidden=hidden)
        super().__init__(VectorTokens(features, width), classes, body, width)


class TokenParaFormer(_ParaFormer):
    """The Para-Former of tokens, (batch, at most `length`, channels). Other arguments as in `ParaFormer`."""

    def __init__(
        self,
        *,
        length: int,
        channels: int,
        classes: int,
        branches: int = 8,
        depth: int = 2,
        width: int = 192,
        heads: int = 3,
        hidden: int = 768,
    ) -> None:
        for name, value in {"length": length, "channels": channels, "classes": classes}.items():
            check_positive(name, value)
        body = Branches(branches, depth=depth, width=width, heads=heads, hidden=hidden)
        super().__init__(SequenceTokens(length, channels, width), classes, body, width)
