"""Transformer branches side by side, with stacked weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend

ROWS_AT_ONCE = 600
"""Largest number of tokens, over a group of branches, whose activations fit a CPU's cache; more wait for memory."""


class Branches(nn.Module):
    """`x ↦ Σ_i Branch_i(x)`: each branch a stack of pre-norm transformer blocks with weights of its own.

    Weights of all branches are stacked, (branches, …), so that they run as one batched computation or as a loop, with
    the same `state_dict`.

    Args:
        count: B, the number of branches.
        depth: blocks per branch.
        width: of a token; a multiple of `heads`.
        heads: of the attention.
        hidden: width of a block's MLP.
        normalised_skip: whether a block adds to its normalised input, `y = LN(x) + Attn(LN(x))`, or to its input.
        qkv_bias: whether queries, keys and values have a bias.
        dropout: share of the outputs of the attention and of both MLP layers that is dropped in training.
        causal: whether a token attends to itself and earlier ones only.
    """

    def __init__(
        self,
        count: int,
        *,
        depth: int = 2,
        width: int = 192,
        heads: int = 3,
        hidden: int = 768,
        normalised_skip: bool = False,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"depth": depth, "width": width, "heads": heads, "hidden": hidden}.items():
            check_positive(name, value)
        check_positive("branches", count)
        if width % heads:
            raise ValueError(f"width={width} is not a multiple of heads={heads}")
        self.batched: bool | None = None
        """False: a loop; True, None: batched, on a CPU in groups that fit its caches."""
        check_share("dropout", dropout)
        self.blocks = nn.ModuleList(
            _StackedBlock(count, width, heads, hidden, normalised_skip, qkv_bias, dropout, causal) for _ in range(depth)
        )

    @property
    def count(self) -> int:
        """B, the number of branches."""
        first: _StackedBlock = self.blocks[0]  # type: ignore[assignment]
        return len(first.qkv)

    def forward(self, tokens: Tensor, *, first: int | None = None) -> Tensor:
        """(batch, tokens, width), like the tokens; with `first=n`, the sum of the first n branches alone."""
        total: Tensor | None = None
        for outputs in self._runs(tokens, self.count if first is None else at_most(first, self.count)):
            share = outputs.sum(dim=0)
            total = share if total is None else total + share
        assert total is not None
        return total

    def sums(self, tokens: Tensor) -> Tensor:
        """The sums of the first 1 … B branches, (branches, batch, tokens, width)."""
        return torch.cat(list(self._runs(tokens, self.count))).cumsum(dim=0)

    def kept(self, which: Sequence[int]) -> Branches:
        """A copy with these branches alone, in this order."""
        wrong = [index for index in which if not 0 <= index < self.count]
        if wrong or not len(which):
            raise ValueError(
                f"branches {list(which)} of {self.count}: name at least one, each from 0 to {self.count - 1}"
            )
        index = torch.as_tensor(list(which), device=next(self.parameters()).device)
        return self._with(lambda name, parameter: (parameter[index], parameter.requires_grad))

    def joined(self, other: Branches) -> Branches:
        """A copy with the branches of both, which must have the same shapes; frozen where both are."""
        theirs = dict(other.named_parameters())
        for name, parameter in self.named_parameters():
            shapes = [None if p is None else tuple(p.shape[1:]) for p in (parameter, theirs.get(name))]
            if shapes[0] != shapes[1] or len(self.blocks) != len(other.blocks):
                raise ValueError(
                    f"branches of different shapes cannot be joined: {name} has shape {shapes[0]} per branch here and "
                    f"{shapes[1]} there, with {len(self.blocks)} and {len(other.blocks)} blocks"
                )

        def both(name: str, parameter: Tensor) -> tuple[Tensor, bool]:
            other = theirs[name]
            return torch.cat((parameter, other.to(parameter))), parameter.requires_grad or other.requires_grad

        return self._with(both)

    def _with(self, change: Callable[[str, Tensor], tuple[Tensor, bool]]) -> Branches:
        """A copy whose parameters are what `change` makes of them, and trained if it says so."""
        twin = copy.deepcopy(self)
        for name, parameter in self.named_parameters():
            path, _, own = name.rpartition(".")
            with torch.no_grad():
                changed, trained = change(name, parameter)
            setattr(twin.get_submodule(path), own, nn.Parameter(changed.clone(), trained))
        return twin

    def _runs(self, tokens: Tensor, count: int) -> Iterator[Tensor]:
        """The outputs of the first `count` branches, group by group, (branches of the group, batch, tokens, width)."""
        size = count
        if self.batched is False:
            size = 1
        elif tokens.device.type == "cpu":
            size = max(1, ROWS_AT_ONCE // max(1, tokens.shape[0] * tokens.shape[1]))
        groups = zip(*(block.split(count, size) for block in self.blocks), strict=True)  # type: ignore[operator]
        for group in groups:
            x = tokens.expand(len(group[0].qkv), *tokens.shape)
            for block, weights in zip(self.blocks, group, strict=True):
                x = block(x, weights=weights)  # by name: FlopCounterMode fails on views of parameters among the inputs
            yield x

    def extra_repr(self) -> str:
        return f"count={self.count}, batched={self.batched}"


class _Weights(NamedTuple):
    """The weights of a group of branches, by their names in the block."""

    norms: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    project: Tensor
    project_bias: Tensor
    expand: Tensor
    expand_bias: Tensor
    contract: Tensor
    contract_bias: Tensor


class _StackedBlock(nn.Module):
    """A pre-norm transformer block for every branch: parameters have the branches in dim 0."""

    def __init__(
        self,
        branches: int,
        width: int,
        heads: int,
        hidden: int,
        normalised_skip: bool,
        qkv_bias: bool,
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        self.heads, self.normalised_skip, self.dropout, self.causal = heads, normalised_skip, dropout, causal
        self.norms = nn.Parameter(torch.stack((torch.ones(branches, 2, width), torch.zeros(branches, 2, width)), 2))
        self.qkv, bias = _linear(branches, width, 3 * width)
        self.register_parameter("qkv_bias", bias if qkv_bias else None)
        self.project, self.project_bias = _linear(branches, width, width)
        self.expand, self.expand_bias = _linear(branches, width, hidden)
        self.contract, self.contract_bias = _linear(branches, hidden, width)

    def split(self, count: int, size: int) -> list[_Weights]:
        """The weights of the first `count` branches, in groups of `size`; the gradient of each weight is one tensor."""
        sizes = [min(size, count - start) for start in range(0, count, size)]
        rest = len(self.qkv) - count
        whole = (getattr(self, name) for name in _Weights._fields)
        parts = (len(sizes) * [None] if each is None else each.split([*sizes, rest])[:-1] for each in whole)
        return [_Weights(*group) for group in zip(*parts, strict=True)]

    def forward(self, x: Tensor, weights: _Weights) -> Tensor:
        """(branches, batch, tokens, width) to the same, for branches with these weights."""
        branches, batch, tokens, width = x.shape

        def linear(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            rows = y.reshape(branches, batch * tokens, weight.shape[1])
            return torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias[:, None], rows, weight)

        def dropped(y: Tensor) -> Tensor:
            return F.dropout(y, self.dropout, self.training) if self.dropout else y

        def norm(y: Tensor, index: int) -> Tensor:
            scale, shift = weights.norms[:, index, :, None, None].unbind(1)
            return F.layer_norm(y, (width,)) * scale + shift

        normed = norm(x, 0)
        qkv = linear(normed, weights.qkv, weights.qkv_bias)
        q, k, v = qkv.view(branches * batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, causal=self.causal).transpose(1, 2)
        attended = dropped(linear(mixed, weights.project, weights.project_bias)).view(x.shape)
        x = (normed if self.normalised_skip else x) + attended
        normed = norm(x, 1)
        inner = dropped(F.gelu(linear(normed, weights.expand, weights.expand_bias)))
        outer = dropped(linear(inner, weights.contract, weights.contract_bias)).view(x.shape)
        return (normed if self.normalised_skip else x) + outer


def _linear(branches: int, inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Stacked weights, (branches, inputs, outputs), and biases, initialised as `nn.Linear` is."""
    bound = 1 / math.sqrt(inputs)
    weight = nn.Parameter(torch.empty(branches, inputs, outputs).uniform_(-bound, bound))
    return weight, nn.Parameter(torch.empty(branches, outputs).uniform_(-bound, bound))


def check_positive(name: str, value: Any) -> None:
    """`ValueError` unless it is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1")


def check_share(name: str, value: Any) -> None:
    """`ValueError` unless it is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r} must be a number from 0 to below 1")


def at_most(first: int, count: int) -> int:
    """`first`; `ValueError` unless it is an integer from 1 to `count`."""
    if not isinstance(first, int) or isinstance(first, bool) or not 1 <= first <= count:
        raise ValueError(f"branches={first!r} must be an integer from 1 to {count}")
    return first
