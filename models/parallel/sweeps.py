"""One sweep over the depth: all transforms at once, then the linear part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers import Picard

from ..methods.base import scaled
from ..optdnn import OptDNN
from .guesses import finite
from .newton import Newton, scan
from .repeats import Repeats
from .stack import OneByOne, stacked
from .trajectory import trajectory


class Sweep:
    """`t ↦ s·T(y(t))`: from the outputs of all layers to the outputs at the points that these define.

    A step of Picard iteration. Its fixed point is the serial network, and k sweeps make the first k layers exact.
    """

    def __init__(
        self,
        net: OptDNN,
        z0: Tensor,
        inputs: tuple[Tensor, ...],
        *,
        repeats: Repeats | None = None,
        batched: bool = True,
    ) -> None:
        self.net, self.z0, self.inputs, self.repeats = net, z0, inputs, repeats or Repeats(net, z0)
        self.trajectory = trajectory(net.method, net.coefficients, z0)
        self.transforms = stacked(list(net.transforms)) if batched else OneByOne(list(net.transforms))
        unscaled = net.coefficients.always("step", 1.0)
        self._steps = None if unscaled else net.coefficients.column("step").to(z0)

    def __call__(self, outputs: Any) -> Any:
        """(L, batch, …) outputs, or a pair of such; None for zeros."""
        return self.evaluated(self.trajectory.points(self.z0, outputs))

    def evaluated(self, points: Any) -> Any:
        """The outputs at these points."""
        with self.repeats.same(updates=isinstance(self.transforms, OneByOne)):
            found = self.transforms(points, self.inputs)
        return found if self._steps is None else scaled(found, self._steps.view(-1, *[1] * self.z0.ndim))


@dataclass(frozen=True)
class PlainSweeps(Picard):
    """Sweeps one after the other, each from the outputs of the last one."""

    budget: ClassVar[str] = "max_sweeps"
    alternatives: ClassVar[str] = "another newton=…"


class NewtonSweep(Sweep):
    """A sweep that follows the transforms' Jacobians along the trajectory: `Newton`'s method over the depth.

    Costs a Jacobian for each layer and row, and a scan of matrices of the streams' joint width. If only the diagonals
    are followed, the scan has one matrix per feature instead, with as many rows as there are streams.
    """

    def __init__(
        self,
        net: OptDNN,
        z0: Tensor,
        inputs: tuple[Tensor, ...],
        newton: Newton,
        *,
        repeats: Repeats | None = None,
        batched: bool = True,
    ) -> None:
        super().__init__(net, z0, inputs, repeats=repeats, batched=batched)
        companion = self.trajectory.companion
        if companion is None or self.trajectory.pair:
            raise TypeError(
                f"{net.method} has no Newton sweep: it takes a method with one transform per layer and a constant "
                "number of streams"
            )
        self.newton, self._companion = newton, companion

    def __call__(self, outputs: Any) -> Any:
        guess = None if outputs is None else finite(outputs)
        points = self.trajectory.points(self.z0, guess)
        flat = points.flatten(2)
        values, jacobians = self.newton.jacobians(lambda flat: self.evaluated(flat.view(points.shape)).flatten(2), flat)
        companion = self._companion
        steps, inflow, query = (part.to(flat) for part in (companion.steps, companion.inflow, companion.query))
        # the change of the streams, for each feature, δ⁺ = (A ⊗ I + B C ⊗ J) δ + B ⊗ (T(y) − t): exactly 0 in layers
        # that are exact
        inflows = torch.einsum("lsm,lbi->lbis", inflow, values if guess is None else values - guess.flatten(2))
        starts = torch.zeros_like(inflows[0])
        fed_back = inflow @ query
        if self.newton.follows_diagonals:
            matrices = steps[:, None, None] + jacobians[..., None, None] * fed_back[:, None, None]
            states = scan(matrices, inflows[..., None], starts[..., None])[..., 0]
        else:
            layers, batch, width = flat.shape
            size = steps.shape[1] * width
            basis = torch.eye(width, dtype=flat.dtype, device=flat.device)
            matrices = torch.einsum("lst,ij->lisjt", steps, basis)[:, None]
            matrices = matrices + torch.einsum("lst,lbij->lbisjt", fed_back, jacobians)
            found = scan(
                matrices.reshape(layers, batch, size, size),
                inflows.reshape(layers, batch, size, 1),
                starts.reshape(batch, size, 1),
            )
            states = found.view(layers + 1, batch, width, steps.shape[1])
        followed = values + _times(jacobians, torch.einsum("lms,lbis->lbi", query, states[:-1]))
        return torch.where(followed.isfinite(), followed, values).view(points.shape)


def _times(jacobians: Tensor, points: Tensor) -> Tensor:
    """`J x`, of matrices or of their diagonals."""
    return jacobians * points if jacobians.ndim == points.ndim else (jacobians @ points[..., None])[..., 0]
