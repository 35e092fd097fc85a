"""Evaluate a network in parallel over its depth: all layers at once, sweep after sweep."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from implicit import one_weight

from .methods import Method
from .methods.base import scaled
from .methods.coefficients import Values
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
    _check_sweeps(sweeps, len(net.transforms))
    coefficients = [net.coefficients.at(k) for k in range(len(net.transforms))]
    nothing = scaled(net.method.query(net.method.start(z0), coefficients[0]), 0.0)
    outputs = [nothing] * len(net.transforms)
    with one_weight(net):
        for _ in range(sweeps):
            points, _ = _trajectory(net.method, z0, outputs, coefficients)
            outputs = [
                scaled(transform(y, *inputs), c.step)
                for transform, y, c in zip(net.transforms, points, coefficients, strict=True)
            ]
    return _trajectory(net.method, z0, outputs, coefficients)[1]


class Parallel(nn.Module):
    """The parallel reading of a network as a module: `parallel_evaluate(net, z0, sweeps=sweeps)`.

    Trained with `sweeps=1` it is a sum of independent branches on the same input, as in the Para-Former; the same
    parameters may then be evaluated with any number of sweeps.
    """

    def __init__(self, net: OptDNN, sweeps: int = 1) -> None:
        super().__init__()
        _check_sweeps(sweeps, len(net.transforms))
        self.net, self.sweeps = net, sweeps

    def forward(self, z0: Tensor, *inputs: Tensor) -> Tensor:
        """`z_L` after the sweeps, (batch, …) like z0."""
        return parallel_evaluate(self.net, z0, *inputs, sweeps=self.sweeps)

    def extra_repr(self) -> str:
        return f"sweeps={self.sweeps}"


def _trajectory(method: Method, z0: Tensor, outputs: list[Any], coefficients: list[Values]) -> tuple[list[Any], Tensor]:
    """All queries `y_k`, and `z_L`, when the k-th transform's output is `outputs[k]`: the method's linear part."""
    streams, points = method.start(z0), []
    for t, c in zip(outputs, coefficients, strict=True):
        points.append(method.query(streams, c))
        streams = method.advance(streams, points[-1], t, c)
    return points, streams[0]


def _check_sweeps(sweeps: Any, depth: int) -> None:
    if not isinstance(sweeps, int) or isinstance(sweeps, bool) or not 1 <= sweeps <= depth:
        raise ValueError(f"sweeps={sweeps!r} must be an integer from 1 to the network's depth, {depth}")
