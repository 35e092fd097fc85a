"""Evaluate a network in parallel over its depth: all layers at once, sweep after sweep."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .methods import Method
from .optdnn import OptDNN


def parallel_evaluate(net: OptDNN, z0: Tensor, *inputs: Tensor, sweeps: int) -> Tensor:
    """`z_L` after `sweeps` sweeps of Picard iteration over the whole trajectory.

    A sweep evaluates every transform, each at its current guess `y_k`, then solves the method's linear recursion
    exactly for the new trajectory. The first guess has all transforms at zero, so that `sweeps=1` gives
    `z_0 + Σ w_k T_k(z_0)`, the form of the Para-Former; `sweeps=L` equals `net(z0)`, since k sweeps make the first k
    layers exact. Between them the error falls superlinearly for well-behaved networks.

    Args:
        net: the network; a proximal step counts as one transform.
        z0: (batch, …), the input of its first layer.
        inputs: further inputs of the transforms.
        sweeps: K in [1, L].

    Returns:
        (batch, …), like `net(z0, *inputs)`.
    """
    if not isinstance(net, OptDNN):
        raise TypeError(f"net is a {type(net).__name__}: pass an OptDNN")
    depth = len(net.transforms)
    if not isinstance(sweeps, int) or isinstance(sweeps, bool) or not 1 <= sweeps <= depth:
        raise ValueError(f"sweeps={sweeps!r} must be an integer from 1 to the network's depth, {depth}")
    queries, output = propagator(net.method, depth, z0)
    outputs = torch.zeros_like(z0).expand(depth, *z0.shape)
    for _ in range(sweeps):
        # y_k depends on T_0 … T_{k−1} only
        points = torch.tensordot(queries, torch.cat((z0[None], outputs)), dims=1)
        outputs = torch.stack(
            [transform(y, *inputs) for transform, y in zip(net.transforms, points.unbind(), strict=True)]
        )
    return torch.tensordot(output, torch.cat((z0[None], outputs)), dims=1)


def propagator(method: Method, depth: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The method's linear recursion, solved: `y_k` and `z_L` as combinations of `z_0, t_0, …, t_{L−1}`.

    Returns the coefficients of the queries, (depth, 1 + depth), and of the output, (1 + depth,), found by running the
    recursion itself on unit vectors. Dtype and device as in `like`.
    """
    unit = torch.eye(1 + depth, dtype=torch.float64)
    streams, queries = method.start(unit[0]), []
    for k in range(depth):
        y = method.query(streams, k)
        queries.append(y)
        streams = method.advance(streams, y, unit[k + 1], k)
    return torch.stack(queries).to(like), streams[0].to(like)


class Parallel(nn.Module):
    """The parallel reading of a network as a module: `parallel_evaluate(net, z0, sweeps=sweeps)`.

    Trained with `sweeps=1` it is a sum of independent branches on the same input, as in the Para-Former; the same
    parameters may then be evaluated with any number of sweeps.
    """

    def __init__(self, net: OptDNN, sweeps: int = 1) -> None:
        super().__init__()
        self.net, self.sweeps = net, sweeps

    def forward(self, z0: Tensor, *inputs: Tensor) -> Tensor:
        return parallel_evaluate(self.net, z0, *inputs, sweeps=self.sweeps)

    def extra_repr(self) -> str:
        return f"sweeps={self.sweeps}"
