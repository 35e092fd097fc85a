"""The Para-Former's own way of training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models import ParaFormer

from .steps import Step


class Progressive(nn.Module):
    """A Para-Former that, in every other pass over the data, also trains the sums of its first branches.

    In such a pass each batch makes B steps, on the first 1, 2, …, B branches, with gradients clipped to a norm of 1. In
    the other passes, the last among them, each batch makes one step on all branches, as usual. The code published with
    the paper calls two passes, one of each kind, an epoch. Here each pass is an epoch, so that all networks see the
    data equally often.

    Source: ParaFormer, arXiv 2510.15425, and its code.
    """

    def __init__(self, network: ParaFormer) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *, branches: int | None = None) -> Tensor:
        """(batch, classes) logits; of the first `branches` branches alone, if a number is given."""
        logits: Tensor = self.network(x, branches=branches)
        return logits

    def training_steps(self, epoch: int, epochs: int) -> Sequence[Step]:
        """The optimiser's steps on a batch in the given epoch, counted from 0, out of `epochs`."""
        if (epochs - epoch) % 2:
            return [Step()]
        return [Step({"branches": count}, largest_norm=1.0) for count in range(1, self.network.branches + 1)]

    def prefixes(self, x: Tensor) -> Tensor:
        """As `ParaFormer.prefixes`."""
        return self.network.prefixes(x)
