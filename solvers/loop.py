"""`solve`: the one loop that drives every solver, counts, stops, records, keeps the best and drops finished rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .anderson import Anderson
from .ledger import Ledger
from .solution import Solution, Status
from .solver import Solver
from .state import Layout, State

DROP_SHARE = 1 / 8
"""Share of the current rows that must have stopped before they are dropped: dropping copies the solver's history."""
COUPLING_SLACK = 10.0
"""Factor over its tolerance at which a converged row, evaluated again in the full batch, counts as changed."""


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

    A row has converged when `‖f(z) − z‖₂ ≤ atol + rtol·‖f(z)‖₂` and the residual lies below its value at `z0`. A row
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
    layout, problem = prepare(f, z0, args, solver, rtol, atol, max_steps, compact)
    with torch.no_grad():
        flat = layout.flatten(z0)
        outcome = iterate(problem, flat, solver, rtol, atol, max_steps, compact)
        if outcome.dropped and not agrees(outcome, problem(outcome.value), rtol, atol):
            outcome = resolve(problem, flat, solver, rtol, atol, max_steps)
        return outcome.solution(layout, z0)


class Problem:
    """`f` as a map of flat (rows, dim) matrices, with its arguments and the checks of what it returns."""

    def __init__(self, f: Callable[..., State], args: tuple[Any, ...], layout: Layout) -> None:
        self.f, self.args, self.layout = f, args, layout

    def __call__(self, flat: Tensor) -> Tensor:
        layout = self.layout
        output = self.f(layout.unflatten(flat), *self.args)
        return layout.flatten(layout.check(output, flat.shape[0]))

    def take(self, rows: Tensor) -> Problem:
        args = tuple(select(argument, rows) for argument in self.args)
        return Problem(self.f, args, self.layout)


class Outcome(NamedTuple):
    """What `iterate` found, flat and unverified."""

    value: Tensor
    books: dict[str, Any]
    dropped: bool

    def solution(self, layout: Layout, z0: State) -> Solution:
        value = self.value
        if value.untyped_storage().data_ptr() == layout.flatten(z0).untyped_storage().data_ptr():
            value = value.clone()  # the caller may write into either
        books = {name: torch.from_numpy(book).to(layout.device) for name, book in self.books.items()}
        return Solution(
            value=layout.unflatten(value),
            residual=books["relative"],
            status=books["status"],
            steps=books["steps"],
            evaluations=books["steps"].clone(),
            trace=books["trace"],
        )


def prepare(
    f: Any, z0: State, args: Any, solver: Any, rtol: float, atol: float, max_steps: int, compact: bool
) -> tuple[Layout, Problem]:
    """Check the arguments of `solve`."""
    if not callable(f):
        raise TypeError(f"f is a {type(f).__name__}: pass a callable f(z, *args)")
    if not isinstance(args, tuple):
        raise TypeError(f"args is a {type(args).__name__}: pass a tuple, args=(x,)")
    check_settings(solver, rtol, atol, max_steps)
    layout = Layout(z0)
    if compact:
        for position, argument in enumerate(args):
            if isinstance(argument, Tensor) and (argument.ndim == 0 or argument.shape[0] != layout.batch):
                raise ValueError(
                    f"args[{position}] has shape {tuple(argument.shape)}, z0 a batch of {layout.batch}: compact=True "
                    "drops rows of every tensor in args; put shared tensors into the closure, or pass compact=False"
                )
    return layout, Problem(f, args, layout)


def check_settings(solver: Any, rtol: Any, atol: Any, max_steps: Any) -> None:
    """Raise on settings that no solve can have."""
    if not isinstance(solver, Solver):
        raise TypeError(f"solver={solver!r} is not a Solver: pass an object such as Anderson() or Picard(damping=0.5)")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r} must be a finite number of at least 0")
    if not isinstance(max_steps, int) or isinstance(max_steps, bool) or max_steps < 1:
        raise ValueError(f"max_steps={max_steps!r} must be an integer of at least 1")


def iterate(
    problem: Problem, z: Tensor, solver: Solver, rtol: float, atol: float, max_steps: int, compact: bool
) -> Outcome:
    """The loop. With `compact` its outcome is not yet verified against coupling between rows."""
    layout = problem.layout
    rounding = torch.finfo(layout.dtype).eps
    rounded = layout.dtype != layout.working_dtype
    ledger = Ledger(layout.batch, rtol, atol, rounding)
    norms = z.new_empty(2, layout.batch)
    memory, best, value, dropped = solver.init(z), z, z, False
    image: Tensor | None = None
    step = 0
    while step < max_steps and layout.batch:
        step += 1
        last_image, version = image, _version(z)
        image = _evaluate(problem, z, dropped)
        if image is not z and (_version(z) != version or _same_memory(image, last_image)):
            raise ValueError(
                "f writes into its argument or returns the same buffer at every call: return a fresh tensor (no "
                "in-place operations on z; clone a static output)"
            )
        residual = image - z
        torch.linalg.vector_norm(residual, dim=1, out=norms[0])
        torch.linalg.vector_norm(image, dim=1, out=norms[1])
        lengths = norms.cpu().numpy().astype(np.float64)  # the one synchronisation of a step
        if _extreme(lengths, ledger.active, z.dtype):
            lengths = np.stack([_scaled_norm(residual), _scaled_norm(image)])
        keep, forget = ledger.enter(step, lengths[0], lengths[1])
        best = z if keep is None else torch.where(_column(keep, z), z, best)
        if keep is None:
            if step == max_steps:
                break
            z, memory = solver.step(memory, z, image, residual)
        else:
            if step == max_steps or not ledger.active.any():
                break
            if compact and len(ledger.active) - ledger.active.sum() >= DROP_SHARE * len(ledger.active):
                value = best if not dropped else value.index_copy(0, _rows(ledger.index, z), best)
                stay = _rows(ledger.drop(), z)
                dropped, problem, memory = True, problem.take(stay), select(memory, stay)
                z, image, residual, best = (x.index_select(0, stay) for x in (z, image, residual, best))
                norms = norms.new_empty(2, len(stay))
                forget = None if forget is None else forget[stay.cpu().numpy()]
            proposal, memory = solver.step(memory, z, image, residual)
            if forget is not None and forget.any():
                rows = torch.from_numpy(forget).to(z.device)
                memory = solver.restart(memory, rows)
                proposal = torch.where(rows[:, None], image, proposal)
            z = proposal if ledger.active.all() else torch.where(_column(ledger.active, z), proposal, best)
        if rounded:
            z = z.to(layout.dtype).to(layout.working_dtype)
    value = value.index_copy(0, _rows(ledger.index, z), best) if dropped else best
    return Outcome(value, ledger.close(step), dropped)


def agrees(outcome: Outcome, image: Tensor, rtol: float, atol: float) -> bool:
    """Whether the rows that converged in a shrinking batch hold in the full one, of which `image` is the evaluation."""
    converged = torch.from_numpy(outcome.books["status"] == Status.CONVERGED).to(image.device)
    scale = torch.linalg.vector_norm(image, dim=1)
    residual = torch.linalg.vector_norm(image - outcome.value, dim=1)
    rounding = torch.finfo(image.dtype).eps
    allowed = COUPLING_SLACK * (atol + (rtol + rounding) * scale)
    return bool((~converged | (residual <= allowed)).all())


def resolve(problem: Problem, z: Tensor, solver: Solver, rtol: float, atol: float, max_steps: int) -> Outcome:
    """The fallback when dropping rows changed the others: solve with every row in place, and say why."""
    warnings.warn(
        "solving without the rows that had stopped changed the remaining ones, so the whole batch was solved again: f "
        "couples the rows (batch statistics, shared attention) or is not deterministic (dropout). Pass compact=False, "
        "replace BatchNorm by GroupNorm or LayerNorm, or draw the dropout mask outside f",
        RuntimeWarning,
        stacklevel=4,
    )
    return iterate(problem, z, solver, rtol, atol, max_steps, compact=False)


def select(memory: Any, rows: Tensor) -> Any:
    """The rows of every tensor in nested (named) tuples."""
    if isinstance(memory, Tensor):
        return memory.index_select(0, rows)
    if isinstance(memory, tuple):
        parts = [select(part, rows) for part in memory]
        kind: Any = type(memory)
        return kind._make(parts) if hasattr(kind, "_make") else tuple(parts)
    return memory


def _evaluate(problem: Problem, z: Tensor, dropped: bool) -> Tensor:
    try:
        return problem(z)
    except (RuntimeError, ValueError, IndexError) as error:
        if not dropped:
            raise
        raise ValueError(
            "f failed once rows that had stopped were dropped: a tensor in its closure has the batch's full size. "
            "Pass it through args, or pass compact=False"
        ) from error


def _version(z: Tensor) -> int:
    return 0 if z.is_inference() else z._version


def _same_memory(image: Tensor, last: Tensor | None) -> bool:
    return last is not None and image.data_ptr() == last.data_ptr() and image.numel() > 0


def _column(rows: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(like.device)[:, None]


def _rows(index: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(index).to(like.device)


def _extreme(lengths: Any, active: Any, dtype: torch.dtype) -> bool:
    """Whether squares may have left the dtype's range, so that a norm of 0 or Inf may be an artefact."""
    small, large = (1e-18, 1e18) if dtype == torch.float32 else (1e-150, 1e150)
    lengths = lengths[:, active]
    return bool(((lengths < small) | (lengths > large)).any())


def _scaled_norm(x: Tensor) -> Any:
    """Row norms in float64 that neither overflow nor underflow while the result is representable."""
    largest = x.abs().amax(dim=1, keepdim=True) if x.shape[1] else x.new_zeros(x.shape[0], 1)
    safe = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    norms = torch.linalg.vector_norm(x / safe, dim=1).double() * safe[:, 0].double()
    return torch.where(largest[:, 0].isfinite(), norms, largest[:, 0].double()).cpu().numpy()
