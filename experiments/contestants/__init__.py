"""The networks that are compared, for each task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..tasks import Task
from .contestant import Contestant, Contestants, named, readings
from .deblurring import restorers
from .pictures import cifar, imagenet
from .small import digits, vectors

CONTESTANTS: dict[str, Callable[[Task], Contestants]] = {
    "digits": digits,
    "rings": partial(vectors, width=12, depth=6, dial=24),
    "parity": partial(vectors, width=16, depth=6, dial=32),
    "telgarsky": partial(vectors, width=12, depth=6, dial=24),
    "deblur": restorers,
    "cifar10": cifar,
    "cifar100": cifar,
    "imagenet": imagenet,
}
"""For each task its contestants."""

__all__ = ["CONTESTANTS", "Contestant", "Contestants", "named", "readings"]
