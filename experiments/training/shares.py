"""The order of the data, and each process's share of every batch."""

from __future__ import annotations

from collections.abc import Iterator

import lightning
import torch
from torch.utils.data import RandomSampler, Sampler

from ..errors import InputError
from ..tasks.task import Task
from .team import Team

TEST_BATCH = 256


class Shares(Sampler[int]):
    """Indices in batches that do not depend on the number of processes, which split each batch between them.

    A shuffled epoch is a function of the state of `order` and of the rank: its other random numbers (dropout,
    augmentation) are seeded from there too, so that a resumed training draws the same as an unbroken one.

    Args:
        length: of the data.
        batch: rows for all processes together; if their number divides it, all batches but the last are split evenly.
        team: the processes that share it.
        order: shuffles the data; None: they keep their order. A shuffled epoch leaves out a row that would be a batch
            alone, which has no statistics.
    """

    def __init__(self, length: int, batch: int, team: Team, order: torch.Generator | None = None) -> None:
        self.drawn_from, self.batch, self.team, self.order = length, batch, team, order
        self.length = length if order is None else length - _alone(length, batch)

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch)
        return full * len(self._own(range(self.batch))) + len(self._own(range(rest)))

    def __iter__(self) -> Iterator[int]:
        indices = list(range(self.drawn_from))
        if self.order is not None:
            indices = list(RandomSampler(indices, generator=self.order))
            after = torch.Generator("cpu")
            after.set_state(self.order.get_state())
            drawn = int(torch.randint(2**31, (), generator=after, device="cpu"))
            lightning.seed_everything(drawn + self.team.rank, verbose=False)
        for start in range(0, self.length, self.batch):
            own = self._own(range(start, min(start + self.batch, self.length)))
            yield from indices[own.start : own.stop]

    def rows(self, number: int) -> int:
        """Rows of the batch with that number, for all processes together."""
        return min(self.batch, self.length - number * self.batch)

    def _own(self, whole: range) -> range:
        first, last = (len(whole) * rank // self.team.size for rank in (self.team.rank, self.team.rank + 1))
        return whole[first:last]


def _alone(length: int, batch: int) -> int:
    """Number of rows, 1 or 0, that would be a batch alone."""
    return int(batch > 1 and length > 1 and length % batch == 1)


def check_divides(task: Task, team: Team) -> None:
    """Raise `InputError` unless every process gets a share of every batch, and an equal share of full batches."""
    length, tested = len(task.train), len(task.test)  # type: ignore[arg-type]
    trained = length - _alone(length, task.batch)

    def possible(size: int) -> bool:
        rests = (trained % task.batch, tested % (size * test_share(size)))
        return task.batch % size == 0 and all(rest == 0 or rest >= size for rest in rests)

    if not possible(team.size):
        allowed = ", ".join(str(size) for size in range(1, task.batch + 1) if possible(size))
        raise InputError(
            f"{team.size} processes cannot share the {length} rows of {task.name} in batches of {task.batch}, and the "
            f"{tested} for testing: choose --devices × --nodes from {allowed}"
        )


def test_share(size: int) -> int:
    """Rows of a test batch that each of `size` processes takes."""
    return -(-TEST_BATCH // size)


def check_strategy(task: Task, team: Team) -> None:
    """Raise `InputError` if the team's strategy cannot train the task."""
    if team.strategy == "fsdp" and task.averaging is not None:
        raise InputError(f"--strategy fsdp cannot average weights, which {task.name} asks for: use ddp")
