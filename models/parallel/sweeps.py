"""One sweep over the depth: all transforms at once, then the linear part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..methods.base import scaled
from ..optdnn import OptDNN
from .stack import Loop, stacked
from .trajectory import scan, trajectory


class Sweep:
    """`t ↦ s·T(y(t))`: from the outputs of all layers to those at the points that they make. Picard iteration.

    Its fixed point is the serial network, and k sweeps make the first k layers exact.
    """

    def __init__(self, net: OptDNN, z0: Tensor, inputs: tuple[Tensor, ...], *, batched: bool = True) -> None:
        self.net, self.z0, self.inputs = net, z0, inputs
        self.trajectory = trajectory(net.method, net.coefficients, z0)
        self.transforms = stacked(list(net.transforms)) if batched else Loop(list(net.transforms))
        unscaled = net.coefficients.always("step", 1.0)
        self._steps = None if unscaled else net.coefficients.column("step").to(z0)

    def __call__(self, outputs: Any) -> Any:
        """(L, batch, …) outputs, or a pair of such; None for zeros."""
        return self.evaluated(self.trajectory.points(self.z0, outputs))

    def evaluated(self, points: Any) -> Any:
        """The outputs at these points."""
        found = self.transforms(points, self.inputs)
        return found if self._steps is None else scaled(found, self._steps.view(-1, *[1] * self.z0.ndim))


class NewtonSweep(Sweep):
    """The same with the transforms' Jacobians followed along the trajectory: Newton's method over the depth.

    Converges in a few sweeps, at the price of a Jacobian for each layer and row and of a scan of matrices of the
    streams' joint width: for small widths. Source: Lim, Zhu, Selfridge, Kasim, "Parallelizing non-linear sequential
    models over the sequence length" (DEER), ICLR 2024.
    """

    def __init__(self, net: OptDNN, z0: Tensor, inputs: tuple[Tensor, ...], *, batched: bool = True) -> None:
        super().__init__(net, z0, inputs, batched=batched)
        companion = self.trajectory.companion
        if companion is None or self.trajectory.pair:
            raise TypeError(
                f"{net.method} has no Newton sweep: it takes a method of one transform a layer and of a constant "
                "number of streams"
            )
        self._companion = companion

    def __call__(self, outputs: Any) -> Any:
        points = self.trajectory.points(self.z0, outputs)
        flat = points.flatten(2)
        layers, batch, width = flat.shape
        values, pull = torch.func.vjp(self.evaluated, points)  # type: ignore[misc]
        basis = torch.eye(width, dtype=flat.dtype, device=flat.device)
        rows = torch.vmap(lambda row: pull(row.expand(flat.shape).reshape(points.shape))[0])(basis)
        jacobians = rows.flatten(3).movedim(0, 2)  # (layers, batch, width, width)
        companion = self._companion
        start, steps, inflow, query = (
            part.to(flat) for part in (companion.start, companion.steps, companion.inflow, companion.query)
        )
        # x⁺ = (A ⊗ I + B C ⊗ J) x + B ⊗ (T(y) − J y), on streams of features
        fed_back = torch.einsum("lsm,lmt,lbij->lbsitj", inflow, query, jacobians)
        matrices = torch.einsum("lst,ij->lsitj", steps, basis)[:, None] + fed_back
        constant = values.flatten(2) - (jacobians @ flat[..., None])[..., 0]
        size = len(start) * width
        states = scan(
            matrices.reshape(layers, batch, size, size),
            torch.einsum("lsm,lbi->lbsi", inflow, constant).reshape(layers, batch, size, 1),
            torch.einsum("s,bi->bsi", start, self.z0.flatten(1)).reshape(batch, size, 1),
        )
        moved = torch.einsum("lmt,lbti->lbi", query, states[:-1].view(layers, batch, len(start), width))
        following = values.flatten(2) + (jacobians @ (moved - flat)[..., None])[..., 0]
        return following.view(values.shape)
