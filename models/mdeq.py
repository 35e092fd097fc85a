"""A multiscale equilibrium network, built on this toolkit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from implicit import Equilibrium, Gradient, ImplicitGradient
from solvers import Broyden, Solver

Scales = tuple[Tensor, Tensor]


class TwoScaleCell(nn.Module):
    """A residual branch at each of two resolutions, and an exchange between them; x enters both.

    `z_i⁺ = norm(relu(z_i + branch_i(z_i, x_i) + exchange_i(z_j)))`, each part normalised, which keeps the iteration
    bounded. The exchange starts at a third of the branches' size; otherwise a fresh cell has no fixed point that a
    solver finds. Source, with four scales: Bai, Koltun, Kolter, "Multiscale deep equilibrium models", NeurIPS 2020.

    Args:
        fine, coarse: channels at the input's resolution and at half of it.
        groups: of the normalisations; divides both.
    """

    def __init__(self, fine: int, coarse: int, *, groups: int = 4) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_Branch(channels, groups) for channels in (fine, coarse))
        self.inject = nn.Conv2d(fine, coarse, 2, stride=2)
        self.down = nn.Sequential(nn.Conv2d(fine, coarse, 2, stride=2), nn.GroupNorm(groups, coarse))
        self.up = nn.Sequential(nn.Conv2d(coarse, fine, 1), nn.GroupNorm(groups, fine), nn.Upsample(scale_factor=2))
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for channels in (fine, coarse))
        for exchange in (self.down, self.up):
            nn.init.constant_(exchange[1].get_parameter("weight"), 1 / 3)

    def forward(self, state: Scales, x: Tensor) -> Scales:
        """((batch, fine, h, w), (batch, coarse, h/2, w/2)) to the same; x is like the first."""
        fine, coarse = state
        finer = fine + self.branches[0](fine, x) + self.up(coarse)
        coarser = coarse + self.branches[1](coarse, self.inject(x)) + self.down(fine)
        return self.norms[0](torch.relu(finer)), self.norms[1](torch.relu(coarser))


class _Branch(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(2))
        for convolution in (self.first, self.second):
            nn.init.normal_(convolution.weight, std=0.01)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        output: Tensor = self.norms[1](x + self.second(torch.relu(self.norms[0](self.first(z)))))
        return output


class MDEQ(nn.Module):
    """(batch, channels, side, side) images, side even, to (batch, classes) logits, read from both scales.

    Args:
        channels, classes: of the images.
        fine, coarse, groups: of the cell.
        solver, gradient, rtol, max_steps: as in `Equilibrium`.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        fine: int = 24,
        coarse: int = 48,
        groups: int = 4,
        solver: Solver = Broyden(),
        gradient: Gradient = ImplicitGradient(),
        rtol: float = 1e-3,
        max_steps: int = 60,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, fine, 3, padding=1)

        def zeros(x: Tensor) -> Scales:
            batch, _, height, width = x.shape
            return torch.zeros_like(x), x.new_zeros(batch, coarse, height // 2, width // 2)

        self.equilibrium = Equilibrium(
            TwoScaleCell(fine, coarse, groups=groups),
            solver=solver,
            gradient=gradient,
            rtol=rtol,
            max_steps=max_steps,
            initial=zeros,
        )
        self.head = nn.Linear(fine + coarse, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, classes) logits."""
        scales = self.equilibrium(self.stem(images))
        output: Tensor = self.head(torch.cat([scale.mean(dim=(2, 3)) for scale in scales], dim=1))
        return output

    if TYPE_CHECKING:  # a module's call is typed Any
        __call__ = forward
