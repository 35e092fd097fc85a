"""A first iterate that a network proposes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from solvers import State
from solvers.state import tree_leaves, tree_map


class LearnedStart(nn.Module):
    """Where a solve begins, proposed by a network: `Equilibrium(cell, initial=LearnedStart(network))`.

    It is trained beside the cell by a loss of its own, the distance of the proposal to the solution:

        z = layer(x)
        loss = criterion(head(z), y) + start.loss(z, x)

    The two do not interact. The proposal has no graph, so no gradient of the layer reaches the network. The loss
    detaches solution and inputs, so its gradient reaches only the network. The solution stays the same within the
    tolerance; the solve takes fewer steps. Prefer it where an evaluation of the cell costs more than the network, and
    where no warm start, such as the solution of the last frame, is available.
    Source: Bai, Koltun, Kolter, "Neural Deep Equilibrium Solvers", ICLR 2022, which learns the solver, too.

    Args:
        network: module `(*inputs) → z0`, which takes the inputs of the cell.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network is a {type(network).__name__}: pass an nn.Module (*inputs) → z0")
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        """The first iterate, without a graph."""
        # not under no_grad: autocast would cache weights without a graph, and the loss would reuse them
        return tree_map(_detached, self.network(*inputs))

    if TYPE_CHECKING:  # a module's call is typed Any
        __call__ = forward

    def loss(self, solution: State, *inputs: Any) -> Tensor:
        """The squared distance of the proposal to the solution, relative to the solution's square, over the batch.

        Args:
            solution: what the layer returned, of any nesting; it is detached here.
            inputs: of the layer, likewise.
        """
        proposed, found = tree_leaves(self.network(*tree_map(_detached, inputs))), tree_leaves(solution)
        shapes = [[tuple(part.shape) for part in parts] for parts in (proposed, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the start has shapes {shapes[0]}, the solution {shapes[1]}: they must be the same")
        # in half precision sums of squares overflow
        pairs = [(_single(part), _single(target.detach())) for part, target in zip(proposed, found)]
        distance = torch.stack([(part - target).abs().square().sum() for part, target in pairs]).sum()
        scale = torch.stack([target.abs().square().sum() for _, target in pairs]).sum()
        return distance / torch.where(scale > 0, scale, 1)  # for a solution of 0, the distance is absolute


def _single(x: Tensor) -> Tensor:
    """In single precision or higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
