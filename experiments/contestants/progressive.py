"""The Para-Former's own way of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import ParaFormer


class Progressive(nn.Module):
    """A Para-Former whose first training passes see the first 1, 2, …, B branches in turn, and all of them afterwards.

    Source: ParaFormer, arXiv 2510.15425.

    Args:
        network: the Para-Former.
        rounds: how often its B prefixes are trained before the ordinary passes.
    """

    passes: Tensor

    def __init__(self, network: ParaFormer, rounds: int) -> None:
        super().__init__()
        self.network, self.rounds = network, rounds
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        branches = None
        if self.training and torch.is_grad_enabled():
            turn, index = divmod(int(self.passes), self.network.branches)
            self.passes += 1
            branches = index + 1 if turn < self.rounds else None
        logits: Tensor = self.network(x, branches=branches)
        return logits

    def prefixes(self, x: Tensor) -> Tensor:
        """As the Para-Former's."""
        return self.network.prefixes(x)
