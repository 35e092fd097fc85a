"""`solve`: the one loop that drives every solver, counts, stops, records, keeps the best and drops finished rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .anderson import Anderson
from .ledger import ROUNDINGS, SLACK, Books, Ledger
from .norms import extreme, row_norms
from .problem import Problem, check_settings, prepare, select
from .solution import Solution, Status
from .solver import Solver
from .state import Layout, State

DROP_SHARE = 1 / 8
"""Share of the current rows that must have stopped before they are dropped: dropping copies the solver's history."""


def solve(
    f: Callable[..., State],
    z0: State,
    args: tuple[Any, ...] = (),
    *,
    solver: Solver = Anderson(),
    rtol: float = 1e-4,
    atol: float = 1e-8,
    max_steps: int = 100,
    compact: bool = False,
) -> Solution:
    """Find `z* = f(z*, *args)` for every row of a batch, each on its own.

    A row has converged when `‖f(z) − z‖₂ ≤ atol + rtol·‖f(z)‖₂`, unless it meets that only because ‖z‖ grew. A row
    that cannot converge says so in its status; nothing raises because of it. No gradient is recorded: for that use
    `implicit.fixed_point`.

    Args:
        f: maps a state to a state of the same shapes and dtype; must not write into its arguments.
        z0: first iterate: a tensor, or a (named) tuple of tensors, (batch, …) with at least one more dim.
        args: further arguments of `f`. With `compact`, every tensor among them has the batch in dim 0.
        solver: the rule that proposes iterates.
        rtol: tolerance relative to `‖f(z)‖`, at least 0.
        atol: absolute tolerance, at least 0.
        max_steps: largest number of steps; each evaluates `f` once at the current iterate.
        compact: drop rows that have stopped from further evaluations. Pays where rows differ much and `f` is costly.
            One evaluation of the full batch at the end verifies that rows do not depend on each other; if they do, the
            whole batch is solved again, with a `RuntimeWarning`.

    Raises:
        TypeError, ValueError: an argument, or what `f` returns, is not of the form above.
    """
    check_settings(solver, rtol, atol, max_steps)
    problem = prepare(f, z0, args, compact)
    with torch.no_grad():
        flat = problem.layout.flatten(z0)
        outcome = iterate(problem, flat, solver, rtol, atol, max_steps, compact)
        if outcome.dropped and not agrees(outcome, problem(outcome.value), problem.layout.rounding, rtol, atol):
            outcome = resolve(problem, flat, solver, rtol, atol, max_steps, outcome)
        return outcome.solution(problem.layout)


@dataclass(frozen=True)
class Outcome:
    """What `iterate` found, flat and not yet verified against coupling between rows."""

    value: Tensor
    books: Books
    dropped: bool
    evaluations: Any  # (batch,)

    def solution(self, layout: Layout) -> Solution:
        """The `Solution`, on the state's device; it shares no memory with what the caller passed."""
        books = self.books
        residual, status, steps, evaluations, trace = (
            torch.from_numpy(array).to(layout.device)
            for array in (books.relative, books.status, books.steps, self.evaluations, books.trace)
        )
        return Solution(layout.unflatten(self.value.clone()), residual, status, steps, evaluations, trace)


def iterate(
    problem: Problem, z: Tensor, solver: Solver, rtol: float, atol: float, max_steps: int, compact: bool
) -> Outcome:
    """The loop, on flat (rows, dim) matrices."""
    layout = problem.layout
    rounded = layout.dtype != layout.working_dtype
    # autocast is for f; the solver's own products keep their digits
    device = z.device.type
    guard: Any = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
    ledger = Ledger(layout.batch, rtol, atol, max_steps, layout.rounding)
    norms = z.new_empty(2, layout.batch)
    memory, best, value, dropped = solver.init(z), z, z, False
    image: Tensor | None = None
    step = 0
    while step < max_steps and layout.batch:
        step += 1
        image = _evaluate(problem, z, image)
        residual = image - z
        torch.linalg.vector_norm(residual, dim=1, out=norms[0])
        torch.linalg.vector_norm(image, dim=1, out=norms[1])
        lengths = norms.cpu().numpy().astype(np.float64)  # the one synchronisation of a step
        if extreme(lengths[:, ledger.rows.active], z.dtype):
            lengths = np.stack((row_norms(residual), row_norms(image)))
        keep, forget = ledger.enter(step, lengths[0], lengths[1])
        best = z if keep is None else torch.where(_on_device(keep, z)[:, None], z, best)
        if step == max_steps or not (ledger.all_active or ledger.rows.active.any()):
            break
        if compact and not ledger.all_active and _worthwhile(ledger):
            value = value.index_copy(0, _on_device(ledger.rows.index, z), best) if dropped else best
            stay = ledger.drop()
            rows = _on_device(stay, z)
            dropped, problem, memory = True, problem.take(rows), select(memory, rows)
            z, image, residual, best = (x.index_select(0, rows) for x in (z, image, residual, best))
            norms, forget = norms.new_empty(2, len(stay)), None if forget is None else forget[stay]
        with guard:
            proposal, memory = solver.step(memory, z, image, residual)
            if forget is not None and forget.any():
                rows = _on_device(forget, z)
                memory = solver.restart(memory, rows)
                proposal = torch.where(rows[:, None], solver.step(solver.init(z), z, image, residual)[0], proposal)
        if not ledger.all_active:
            proposal = torch.where(_on_device(ledger.rows.active, z)[:, None], proposal, best)
        z = proposal.to(layout.dtype).to(layout.working_dtype) if rounded else proposal
    value = value.index_copy(0, _on_device(ledger.rows.index, z), best) if dropped else best
    books = ledger.close(step)
    return Outcome(value, books, dropped, books.steps.copy())


def agrees(outcome: Outcome, image: Tensor, rounding: float, rtol: float, atol: float) -> bool:
    """Whether the rows solved in a shrinking batch hold in the full one, where their value has this image."""
    books, scale = outcome.books, row_norms(image)
    booked = np.where(books.status == Status.CONVERGED, rtol * scale + atol, books.best)
    with np.errstate(invalid="ignore"):
        holds = row_norms(image - outcome.value) <= SLACK * booked + ROUNDINGS * rounding * scale
    return bool((holds | (books.status == Status.NON_FINITE)).all())


def resolve(
    problem: Problem, z: Tensor, solver: Solver, rtol: float, atol: float, max_steps: int, first: Outcome
) -> Outcome:
    """The fallback when dropping rows changed the others: solve with every row in place, and say why."""
    warnings.warn(
        "solving without the rows that had stopped changed the remaining ones, so the whole batch was solved again: f "
        "couples the rows (batch statistics, shared attention) or is not deterministic (dropout). Pass compact=False, "
        "replace BatchNorm by GroupNorm or LayerNorm, or draw the dropout mask outside f",
        RuntimeWarning,
        stacklevel=3,
    )
    second = iterate(problem, z, solver, rtol, atol, max_steps, compact=False)
    return Outcome(second.value, second.books, second.dropped, first.evaluations + second.evaluations)


def _evaluate(problem: Problem, z: Tensor, last: Tensor | None) -> Tensor:
    """`f(z)`; refused where f overwrites what it was given or returned before, for iterates are kept by reference."""
    before = _version(z), 0 if last is None else _version(last)
    image = problem(z)
    if (_version(z), 0 if last is None else _version(last)) != before:
        raise ValueError(
            "f writes into its argument, or into what it returned before: return a fresh tensor (no in-place "
            "operations on z; clone a static output)"
        )
    return image


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _worthwhile(ledger: Ledger) -> bool:
    active = ledger.rows.active
    return bool(len(active) - active.sum() >= DROP_SHARE * len(active))


def _on_device(array: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)
