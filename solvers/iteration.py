"""The one loop: it drives every solver, counts, stops, records, keeps the best and drops finished rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .autocast import autocast_dtype, without_autocast
from .books import Books
from .compilation import as_one_graph
from .ledger import Ledger
from .norms import extreme
from .problem import Problem, Settings, select
from .rows import Bools, Integers
from .solution import Solution
from .solver import RestartingSolver
from .state import Layout
from .sweep import Stretch, advance, begin

DROP_SHARE = 1 / 8
"""Share of the current rows that must have stopped before they are dropped: dropping copies the solver's history."""


class Keep(NamedTuple):
    """What `iterate` is to keep beyond the solution."""

    histories: bool = False
    iterates: tuple[int, ...] = ()
    """Numbers of steps after which the iterate is wanted; 0 is the start."""


class History(NamedTuple):
    """What the solver remembered of some rows, and where they were, when they stopped."""

    rows: Tensor  # their positions in the batch
    step: int  # at which this was, their last or shortly after
    point: Tensor  # (rows, dim): where f was evaluated in that step
    memory: Any


@dataclass(frozen=True)
class Outcome:
    """What `iterate` found, flat and not yet verified against coupling between rows."""

    value: Tensor
    books: Books
    dropped: bool
    histories: list[History]
    iterates: list[Tensor]
    """(batch, dim), as `Keep` asked; rows that had stopped before have their solution."""

    def solution(self, layout: Layout) -> Solution:
        """The `Solution`, on the state's device; it shares no memory with what the caller passed."""
        books = self.books
        residual, status, steps, evaluations, trace = (
            torch.from_numpy(array).to(layout.device)
            for array in (books.relative, books.status, books.steps, books.evaluations, books.trace)
        )
        return Solution(layout.unflatten(self.value.clone()), residual, status, steps, evaluations, trace)


def iterate(
    problem: Problem, z: Tensor, settings: Settings, image: Tensor | None = None, keep: Keep = Keep()
) -> Outcome:
    """Solve, on flat (rows, dim) matrices; `image` is `f(z)` where it is known."""
    layout, max_steps = problem.layout, settings.max_steps
    z = z.to(layout.working_dtype)
    if autocast_dtype(layout.device) is not None:
        # autocast is for f, which turns it on again; the solver's own products keep their digits
        with without_autocast(layout.device):
            return iterate(problem, z, settings, image, keep)
    ledger = Ledger(layout.batch, settings.rtol, settings.atol, max_steps, problem.rounding)
    if not layout.batch:
        return Outcome(z, ledger.close(0), False, [], [z for _ in keep.iterates])
    solver = settings.solver.bind(problem, settings)
    stretch = begin(problem, solver, z, image)
    norms = stretch.norms.cpu()
    exact = stretch.repaired(norms)[0]
    told = exact[np.isfinite(exact) & (exact != 0)]
    if z.dtype == torch.float32 and told.size and extreme(told, z.dtype):
        # squares leave single precision: from here on the solver works in double
        layout.working_dtype, z = torch.float64, z.double()
        stretch = begin(problem, solver, z, stretch.image.double())
        norms = stretch.norms.cpu()
    best, value, dropped, step = z, z, False, 0
    histories: list[History] = []
    iterates: dict[int, Tensor] = {}
    running = np.ones(layout.batch, dtype=bool)  # rows whose history is not filed yet
    while True:
        chosen, forget = ledger.glance(step + 1, norms), None
        if chosen is None:
            chosen, forget = ledger.enter(step + 1, *stretch.repaired(norms))
        best = _chosen(chosen, stretch.points, best)
        for wanted in keep.iterates:
            if step <= wanted < step + len(stretch.points):
                point = stretch.points[wanted - step]
                iterates[wanted] = _filed(value, ledger, point) if dropped else point
        step += len(stretch.points)
        if keep.histories and not ledger.calm:
            running[ledger.rows.index[ledger.rows.active]] = True
            _remember(histories, ~ledger.rows.active, running, ledger, step, stretch)
        finished = not (ledger.calm or ledger.rows.active.any())
        if step == max_steps or (finished and _together(chosen)):
            break
        if settings.compact and not (ledger.calm or finished) and (~ledger.rows.active).mean() >= DROP_SHARE:
            value = _filed(value, ledger, best) if dropped else best
            stay = ledger.drop()
            rows = _on_device(stay, z)
            dropped, problem, stretch, best = True, problem.take(rows), stretch.take(rows), best.index_select(0, rows)
            solver = settings.solver.bind(problem, settings)
            forget = None if forget is None else forget[stay]
        hold = None if ledger.calm else ~ledger.rows.active
        if hold is not None and isinstance(solver, RestartingSolver):
            hold |= ledger.rows.led_astray
        room = 1 if finished else max_steps - step
        stretch = _go_on(problem, solver, settings, stretch, room, hold, forget, best)
        norms = stretch.norms.cpu()  # the one synchronisation of a stretch
        if problem.spent is not None:
            ledger.charge(problem.spent)
            problem.spent = None
    if keep.histories:
        _remember(histories, ledger.rows.active, running, ledger, step, stretch)
    value = _filed(value, ledger, best) if dropped else best
    return Outcome(
        value, ledger.close(step), dropped, histories, [iterates.get(wanted, value) for wanted in keep.iterates]
    )


def _remember(
    histories: list[History], which: Bools, running: Bools, ledger: Ledger, step: int, stretch: Stretch
) -> None:
    """File the histories of these rows, of those whose history is not filed yet."""
    places = np.flatnonzero(which & running[ledger.rows.index])
    if len(places):
        index, point = ledger.rows.index[places], stretch.points[-1]
        running[index] = False
        positions = _on_device(places, point)
        kept = select((point, stretch.memory), positions)
        histories.append(History(_on_device(index, point), step, *kept))


def _go_on(
    problem: Problem,
    solver: Any,
    settings: Settings,
    stretch: Stretch,
    room: int,
    hold: Bools | None,
    forget: Bools | None,
    best: Tensor,
) -> Stretch:
    """The next stretch: until the next look, and at most `room` steps."""
    held = None if hold is None or not hold.any() else (_on_device(hold, best), best)
    if forget is not None and forget.any():
        # as many steps as otherwise, so that the looks at the other rows fall where they would
        return advance(problem, solver, stretch, min(settings.check_every, room), held, _on_device(forget, best))
    if not settings.compile or room == 1:
        return advance(problem, solver, stretch, min(settings.check_every, room), held, None)
    # one length, one graph: the last stretch runs past max_steps, and what it finds there is cut off
    if held is None:
        held = (torch.zeros(len(best), dtype=torch.bool, device=best.device), best)
    # each fill of the solver's memory has a graph of its own
    return as_one_graph(advance)(problem, solver, stretch, settings.check_every, held, None).first(room)


def _together(chosen: int | Integers) -> bool:
    """Whether all rows were kept, if at all, at one point, so that they have been evaluated together."""
    return isinstance(chosen, int) or bool(chosen.max() <= 0 or chosen.min() == chosen.max())


def _chosen(chosen: int | Integers, points: list[Tensor], best: Tensor) -> Tensor:
    """For each row the point to keep, or what was the best before."""
    if isinstance(chosen, int):
        return points[chosen]
    if (chosen == len(points) - 1).all():
        return points[-1]
    for position, point in enumerate(points):
        mask = chosen == position
        if mask.any():
            best = torch.where(_on_device(mask, point)[:, None], point, best)
    return best


def _filed(value: Tensor, ledger: Ledger, best: Tensor) -> Tensor:
    """The values of all rows, those of the current ones new."""
    return value.index_copy(0, _on_device(ledger.rows.index, value), best)


def _on_device(array: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)
