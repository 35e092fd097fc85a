"""The score of a language model."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric


class BitsPerCharacter(MeanMetric):
    """Mean cross-entropy in bits of (batch, length, characters) logits and (batch, length) character numbers."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:  # type: ignore[override]
        # not torchmetrics' Perplexity, whose softmax turns an unlikely character into infinitely many bits
        nats: Any = F.cross_entropy(outputs.float().flatten(0, 1), targets.flatten())
        super().update(nats / math.log(2), targets.numel())
