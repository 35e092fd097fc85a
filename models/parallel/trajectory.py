"""The linear part of a network: how all its points depend on its input and on the outputs of all transforms."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from solvers.state import without_autocast

from ..methods import Method
from ..methods.base import Point
from ..methods.coefficients import Coefficients, Values
from .gather import captured
from .newton import scan


def recursion(method: Method, z0: Tensor, outputs: list[Any], coefficients: list[Values]) -> tuple[list[Point], Tensor]:
    """All points, and `z_L`, layer by layer."""
    streams, points = method.start(z0), []
    for t, c in zip(outputs, coefficients, strict=True):
        points.append(method.query(streams, c))
        streams = method.advance(streams, points[-1], t, c)
    return points, streams[0]


class Companion:
    """A method's steps as matrices, `x_{k+1} = A_k x_k + B_k t_k` and `y_k = C_k x_k`, the same for every feature.

    Found from the method's response to unit streams and unit outputs, in all layers at once. The coefficients'
    gradients flow through them.
    """

    def __init__(self, method: Method, coefficients: Coefficients) -> None:
        self.method, self._values = method, coefficients.stacked()
        blank = torch.zeros(coefficients.depth, dtype=torch.float64, device=coefficients.device)
        start = method.start(blank[0] + 1)
        self._streams = streams = blank.expand(len(start), -1)
        point = method.query(tuple(streams), self._values)
        self._outputs, self.pair = blank.expand(len(parts(point)), -1), isinstance(point, tuple)

        by_stream = [self._answer(unit, self._outputs) for unit in _units(streams)]
        self.start = torch.stack(list(start))
        """(S,): the streams for z_0 = 1."""
        self.steps = torch.stack([following for following, _ in by_stream]).permute(2, 1, 0)
        """A, (L, S, S)."""
        self.query = torch.stack([points for _, points in by_stream]).permute(2, 1, 0)
        """C, (L, M, S)."""
        by_output = [self._answer(streams, unit)[0] for unit in _units(self._outputs)]
        self.inflow = torch.stack(by_output).permute(2, 1, 0)
        """B, (L, S, M)."""

    def _answer(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The next streams, (S, L), and the points, (M, L)."""
        y = self.method.query(tuple(x), self._values)
        following = self.method.advance(tuple(x), y, tuple(t) if isinstance(y, tuple) else t[0], self._values)
        return torch.stack(list(following)), torch.stack(parts(y))

    def check(self) -> None:
        """`TypeError` unless the matrices reproduce the method's step from other streams and outputs."""
        x, t = (
            torch.linspace(-1, 2, zero.numel(), dtype=zero.dtype, device=zero.device).view(zero.shape)
            for zero in (self._streams, self._outputs)
        )
        foreseen = torch.einsum("lsr,rl->sl", self.steps, x) + torch.einsum("lsm,ml->sl", self.inflow, t)
        if not torch.allclose(self._answer(x, t)[0], foreseen):
            raise TypeError(
                f"{self.method} cannot be evaluated in parallel over its depth: its query and advance do more than add "
                "and scale streams and outputs"
            )


class Linear(NamedTuple):
    """The linear part as matrices: each point, and the output, from z_0 and the outputs of all transforms."""

    points: Tensor  # (L, M, 1 + M·L)
    last: Tensor  # (1 + M·L,)
    companion: Companion | None  # None: the streams grow from layer to layer


def linear(method: Method, coefficients: Coefficients) -> Linear:
    """The linear part, by an associative scan of companion matrices, or by the recursion on numbers, in float64."""
    depth = coefficients.depth
    if not method.has_equilibrium:
        units = torch.eye(1 + depth, dtype=torch.float64, device=coefficients.device)
        values = [coefficients.at(k) for k in range(depth)]
        recursed, last = recursion(method, units[0], list(units[1:]), values)
        return Linear(torch.stack([torch.stack(parts(point)) for point in recursed]), last, None)
    companion = Companion(method, coefficients)
    count = companion.inflow.shape[2]
    units = torch.eye(depth, dtype=torch.float64, device=coefficients.device)[:, None, None]
    inflow = pad((companion.inflow[..., None] * units).flatten(2), (1, 0))  # (L, S, 1 + M·L)
    states = scan(companion.steps, inflow, pad(companion.start[:, None], (0, count * depth)))
    return Linear(companion.query @ states[:-1], states[-1, 0], companion)


class Trajectory:
    """All points, and the output, from z_0 and the outputs of all transforms: one product with a triangular matrix."""

    def __init__(self, method: Method, coefficients: Coefficients, like: Tensor) -> None:
        self._alike = starts_alike(method, coefficients)
        points, last, self.companion = linear(method, coefficients)
        self.pair = self.companion is not None and self.companion.pair
        self._points, self._last = points.to(like), last.to(like)

    def fits(self, like: Tensor) -> bool:
        """Whether it was made for tensors like this one."""
        return self._last.dtype == like.dtype and self._last.device == like.device and not self._last.is_inference()

    def points(self, z0: Tensor, outputs: Any) -> Any:
        """(L, batch, …), or a pair of such; outputs likewise, None for zeros."""
        if outputs is None and self._alike:
            start = z0.expand(len(self._points), *z0.shape)
            if len(z0) == 1:
                # layers that share one row pass for a contiguous batch, and GPU kernels then refuse them
                start = start.contiguous()
            found = [start] * self._points.shape[1]
            return tuple(found) if self.pair else found[0]
        known = [z0[None]] if outputs is None else [z0[None], *parts(outputs)]
        found = [_combined(self._points[:, i, : sum(map(len, known))], known) for i in range(self._points.shape[1])]
        return tuple(found) if self.pair else found[0]

    def last(self, z0: Tensor, outputs: Any) -> Tensor:
        """`z_L`, (batch, …)."""
        return _combined(self._last[None], [z0[None], *parts(outputs)])[0]


_trajectories: WeakKeyDictionary[Coefficients, Trajectory] = WeakKeyDictionary()


def trajectory(method: Method, coefficients: Coefficients, like: Tensor) -> Trajectory:
    """The `Trajectory` in the state's dtype, made only once if no coefficient is learned."""
    if next(coefficients.parameters(), None) is not None:
        return Trajectory(method, coefficients, like)
    known = _trajectories.get(coefficients)
    if known is None or not known.fits(like):
        known = Trajectory(method, coefficients, like)
        if not captured(like):  # a capture has computed none of it yet
            _trajectories[coefficients] = known
    return known


_alike: WeakKeyDictionary[Coefficients, bool] = WeakKeyDictionary()


def starts_alike(method: Method, coefficients: Coefficients) -> bool:
    """Whether every point is z_0 while all outputs are 0; `TypeError` for a method that is not linear.

    Both hold for all coefficients or for none, and are checked once, for sample values on the CPU: reading those of the
    network would make each sweep wait for a GPU.
    """
    if coefficients not in _alike:
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            some = type(coefficients)(method, coefficients.depth)
            for raw in some.parameters():
                raw.add_(torch.linspace(-1, 1, raw.numel(), dtype=raw.dtype, device="cpu").view_as(raw))
            found = linear(method, some)
            if found.companion is not None:
                found.companion.check()
        start = found.points[:, :, 0]
        _alike[coefficients] = torch.allclose(start, torch.ones_like(start), atol=1e-4)
    return _alike[coefficients]


def parts(point: Any) -> list[Tensor]:
    """The tensors of a point or an output."""
    return list(point) if isinstance(point, tuple) else [point]


def _combined(weights: Tensor, known: list[Tensor]) -> Tensor:
    """`Σ_j weights[:, j] known[j]`, over the entries of all known tensors in order."""
    shape, start = known[0].shape[1:], 0
    total: Any = 0
    with without_autocast(weights.device):  # a method's own sums are not autocast either
        for tensor in known:
            share = weights[:, start : start + len(tensor)]
            total = total + share @ tensor.to(weights.dtype).flatten(1)
            start += len(tensor)
    return total.view(len(weights), *shape)


def _units(zeros: Tensor) -> list[Tensor]:
    """The tensor of zeros with ones in one row, for each of its rows."""
    units = torch.eye(len(zeros), dtype=zeros.dtype, device=zeros.device)
    return [unit[:, None].expand(zeros.shape) for unit in units]
