"""The Para-Former's own way of training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models import ParaFormer

from .steps import Step


class Progressive(nn.Module):
    """A Para-Former of whose passes over the data every other one trains sums of its first branches, too.

    In such a pass each batch is good for B steps, on the first 1, 2, …, B branches, with gradients clipped to a norm of
    1; in the other, and in the last, for one step on all branches, as usual. One pass of each kind is what the code
    published with the paper calls an epoch; here each is one, so that all networks see the data as often.

    Source: ParaFormer, arXiv 2510.15425, and its code.
    """

    def __init__(self, network: ParaFormer) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *, branches: int | None = None) -> Tensor:
        """(batch, classes) logits; of the first so many `branches` alone, where a number is given."""
        logits: Tensor = self.network(x, branches=branches)
        return logits

    def training_steps(self, epoch: int, epochs: int) -> Sequence[Step]:
        """Of a batch in that epoch, counted from 0, of so many."""
        if (epochs - epoch) % 2:
            return [Step()]
        return [Step({"branches": count}, largest_norm=1.0) for count in range(1, self.network.branches + 1)]

    def prefixes(self, x: Tensor) -> Tensor:
        """As the Para-Former's."""
        return self.network.prefixes(x)
