"""The processes that train one network together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from ..errors import InputError
from .launched import launched

T = TypeVar("T")
STEP = timedelta(seconds=20)
"""How far apart in time processes that fail alike may fail."""


@dataclass(frozen=True)
class Team:
    """One process among those that train together; alone by default."""

    rank: int = 0
    size: int = 1
    nodes: int = 1
    strategy: str = "ddp"
    """`ddp`: each process holds the whole network; `fsdp`: its share of the weights."""
    agreement: Any = None
    """The group in which processes check whether they are in step; its timeout is short."""

    @property
    def leads(self) -> bool:
        """Whether this process prints, measures and writes; the others only train."""
        return self.rank == 0

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the leading process, on every process; its `InputError` is raised on every process."""
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = make()
            except InputError as error:
                outcome[1] = str(error)
        distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise InputError(outcome[1])
        return outcome[0]

    def agrees(self, line: str) -> bool:
        """Whether every process has failed with this same line; they are then still in step."""
        lines: list[Any] = [None] * self.size
        try:
            distributed.all_gather_object(lines, line, group=self.agreement)
        except RuntimeError:  # some have gone, or wait for one that has failed
            return False
        return len(set(lines)) == 1


ALONE = Team()


@contextmanager
def joined(device: str, strategy: str) -> Iterator[Team]:
    """The team that the launcher's environment variables describe; alone without them."""
    if not launched():
        if strategy != "ddp":
            raise InputError(f"--strategy {strategy} needs several processes: pass --devices, or use torchrun")
        yield ALONE
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise InputError(f"more processes than GPUs: this machine has {there}; pass at most that many --devices")
        torch.cuda.set_device(local)
    # waiting while another process measures is no error; a process that has died is noticed at once
    patience = timedelta(days=1)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=patience)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    agreement = distributed.new_group(backend="gloo", timeout=STEP)
    yield Team(rank, size, size // int(os.environ.get("LOCAL_WORLD_SIZE", size)), strategy, agreement)
    distributed.destroy_process_group()


def _end_with(launcher: int) -> None:
    """End this process once its launcher is gone: nothing else would end it."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(1)
