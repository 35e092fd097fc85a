"""What a solve keeps beyond its solution, where this is requested: iterates, and the solver's histories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .loops.transfer import on_device
from .rows import Rows
from .second_try import SecondTryMemory
from .solution import History
from .state import select


class Keep(NamedTuple):
    """What the loop keeps beyond the solution."""

    histories: bool = False
    iterates: tuple[int, ...] = ()
    """Numbers of the steps after which the iterate is kept; 0 is the start."""


class Kept:
    """What has been kept so far of a solve with `batch` rows."""

    def __init__(self, keep: Keep, batch: int) -> None:
        self.keep = keep
        self.histories: list[History] = []
        self._iterates: dict[int, Tensor] = {}
        self._remembered = np.zeros(batch, dtype=bool)

    def add(self, first: int, points: list[Tensor], whole: Callable[[Tensor], Tensor]) -> None:
        """Keep the wanted ones of these points, of step `first` and later; `whole` adds rows that were dropped."""
        for wanted in self.keep.iterates:
            if first <= wanted < first + len(points):
                self._iterates[wanted] = whole(points[wanted - first])

    def remember(self, rows: Rows, which: Any, step: int, point: Tensor, memory: Any) -> None:
        """Keep the history of the rows marked in `which`, unless it is kept already.

        Args:
            rows, which: what is known about the current rows, and (rows,) bool.
            step, point, memory: the last step, where f was evaluated in it, and the solver's memory after it.
        """
        self._remembered[rows.positions[rows.running]] = False
        places = np.flatnonzero(which & ~self._remembered[rows.positions])
        if len(places):
            self._remembered[rows.positions[places]] = True
            if isinstance(memory, SecondTryMemory):
                memory = memory.own
            if memory is None:  # a second solver has taken over all rows that ran, and learns no inverse
                return
            kept = select((point, memory), on_device(places, point))
            self.histories.append(History(on_device(rows.positions[places], point), step, *kept))

    def iterates(self, otherwise: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """The iterates that were wanted, in order, or `otherwise` if the solve ended before."""
        return [self._iterates.get(wanted, otherwise).to(dtype) for wanted in self.keep.iterates]
