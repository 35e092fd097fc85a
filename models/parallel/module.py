"""The parallel reading of a network as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..optdnn import OptDNN
from .evaluate import check_sweeps, parallel_evaluate


class Parallel(nn.Module):
    """The parallel reading of a network as a module: `parallel_evaluate(net, z0, sweeps=sweeps)`.

    Trained with `sweeps=1` it is a sum of independent branches on the same input, as in the Para-Former; the same
    parameters may then be evaluated with any number of sweeps: set `sweeps`.
    """

    def __init__(self, net: OptDNN, sweeps: int = 1) -> None:
        super().__init__()
        if not isinstance(net, OptDNN):
            raise TypeError(f"net is a {type(net).__name__}: pass an OptDNN")
        check_sweeps(sweeps, len(net.transforms))
        self.net, self.sweeps = net, sweeps

    def forward(self, z0: Tensor, *inputs: Tensor) -> Tensor:
        """`z_L` after the sweeps, (batch, …) like z0."""
        return parallel_evaluate(self.net, z0, *inputs, sweeps=self.sweeps)

    if TYPE_CHECKING:  # a module's call is typed Any
        __call__ = forward

    def extra_repr(self) -> str:
        return f"sweeps={self.sweeps}"
