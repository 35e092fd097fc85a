"""Averaged weights, which are tested in place of the last ones."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.nn.utils import parametrize

_SETTLING = 25
"""Uses of a normalised weight after which its norm is as well known as for a fresh one."""


class Averaging(WeightAveraging):
    """An exponential moving average of the weights, which validation and everything after training use.

    After n steps its decay is `min(decay, (1 + n) / (10 + n))`: it spans about a ninth of the steps so far, so that in
    short runs the first weights do not outweigh all others.

    Args:
        decay: the decay in long runs.
        device: of the average, which is made before the network moves and would stay behind otherwise.
    """

    def __init__(self, decay: float, device: str) -> None:
        def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
            share = ((1 + torch.as_tensor(steps, device=averaged.device)) / (10 + steps)).clamp(max=decay)
            return share * averaged + (1 - share) * current  # counters among the buffers rule out lerp

        super().__init__(device=device, avg_fn=average)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        settle(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        settle(pl_module)


@torch.no_grad()
def settle(network: nn.Module) -> None:
    """Let spectral norms find the singular vectors of the averaged weights, which averaged vectors are not.

    Without this the norms are underestimated, weights exceed their bound, and steps need not be well posed.
    """
    for module in network.modules():
        if parametrize.is_parametrized(module):
            before = module.training
            module.train()
            for name in module.parametrizations:  # type: ignore[union-attr]
                for _ in range(_SETTLING):
                    getattr(module, name)
            module.train(before)
