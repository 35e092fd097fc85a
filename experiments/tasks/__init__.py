"""The tasks of the command line."""

from __future__ import annotations

from collections.abc import Callable

from .deblurring import deblur
from .pictures import cifar10, cifar100, imagenet
from .small import digits, parity, rings, telgarsky
from .task import Source, Task

TASKS: dict[str, Callable[[Source], Task]] = {
    "digits": digits,
    "rings": rings,
    "parity": parity,
    "telgarsky": telgarsky,
    "deblur": deblur,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
}
"""A new one is a function and a row, and its contestants in `contestants.CONTESTANTS`."""

__all__ = ["TASKS", "Source", "Task", "rings", "telgarsky"]
