"""Branches on several devices."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from .branches import Branches, at_most


class ShardedBranches(nn.Module):
    """This rank's share of the branches; the sum over the ranks is one all-reduce, and so is its backward.

    Every rank gets the same tokens and returns the same sum, so everything around it is replicated and has equal
    gradients on all ranks, while the gradients of the branches belong to their rank.

    Args:
        branches: all of them, equal on every rank.
        mesh: of one dimension, with at most as many ranks as branches.
    """

    def __init__(self, branches: Branches, mesh: DeviceMesh) -> None:
        super().__init__()
        ranks, rank = mesh.size(), mesh.get_local_rank()
        if branches.count < ranks:
            raise ValueError(f"{branches.count} branches cannot be spread over {ranks} ranks: each needs one")
        own = range(rank * branches.count // ranks, (rank + 1) * branches.count // ranks)
        self.mesh, self.count, self.offset = mesh, branches.count, own.start
        self.local = branches.kept(own)

    @property
    def batched(self) -> bool | None:
        """As in `Branches`."""
        return self.local.batched

    @batched.setter
    def batched(self, value: bool | None) -> None:
        self.local.batched = value

    def forward(self, tokens: Tensor, *, first: int | None = None) -> Tensor:
        """(batch, tokens, width), like the tokens; with `first=n`, the sum of the first n branches alone."""
        everywhere = DTensor.from_local(tokens, self.mesh, [Replicate()], run_check=False)
        own = everywhere.to_local(grad_placements=[Partial()])
        count = self.local.count
        if first is not None:
            count = min(count, max(0, at_most(first, self.count) - self.offset))
        share = self.local(own, first=count) if count else 0 * own
        total: Tensor = DTensor.from_local(share, self.mesh, [Partial()], run_check=False).full_tensor()
        return total

    def extra_repr(self) -> str:
        return f"{self.local.count} of {self.count} branches, from {self.offset}"
