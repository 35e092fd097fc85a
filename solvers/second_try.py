"""The solvers that take over rows on which the first solver is stuck, within the rows' budget.

Anderson's mixing, `Monotone` and `NewtonKrylov` seek small residuals, and may be caught at a minimum of the residual
that is not a fixed point. Broyden's method is not caught there, so it takes over. Where no solver makes progress, plain
steps follow f itself: they find an attracting fixed point, or show that f diverges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .problem import Problem
from .rows import Integers
from .rules.broyden import Broyden, BroydenMemory
from .rules.rule import RestartingSolver, Solver


class SecondTryMemory(NamedTuple):
    own: Any  # the first solver's memory; None: no row needs it
    broyden: BroydenMemory | None
    turn: Tensor  # (rows, 1): 0 the first solver's, 1 Broyden's method's, 2 that of plain steps


@dataclass(frozen=True)
class SecondTry(RestartingSolver):
    """A solver, and those that take over from it: each row follows the solver whose turn it is."""

    solver: Solver

    fixed_cost: ClassVar[bool] = False
    broyden: ClassVar[Broyden] = Broyden(memory=20)

    def bind(self, problem: Problem, rtol: float, atol: float) -> SecondTry:
        return SecondTry(self.solver.bind(problem, rtol, atol))

    def init(self, z: Tensor) -> SecondTryMemory:
        return SecondTryMemory(self.solver.init(z), None, z.new_zeros(len(z), 1, dtype=torch.long))

    def after(self, memory: Any, z: Tensor, turns: Integers, step: int, wanted: set[int]) -> SecondTryMemory:
        """The memory when turns have changed after this step; `wanted` holds the turns of the running rows."""
        own, broyden = memory[:2] if isinstance(memory, SecondTryMemory) else (memory, None)
        if 1 in wanted and broyden is None:
            # its history restarts for all rows at once, at fixed steps whenever it began, so that rows stay independent
            filled = step % self.broyden.memory
            broyden = self.broyden.init(z)._replace(filled=filled)
            broyden.history[:, :filled] = 0
        turn = torch.from_numpy(turns).to(z.device)[:, None]
        return SecondTryMemory(own if 0 in wanted else None, broyden if 1 in wanted else None, turn)

    def step(self, memory: SecondTryMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, SecondTryMemory]:
        own, broyden, turn = memory
        proposal = fz
        if broyden is not None:
            found, broyden = self.broyden.step(broyden, z, fz, residual)
            proposal = torch.where(turn == 1, found, proposal)
        if own is not None:
            # rows whose turn it is not get residual 0, which costs no evaluation within a step
            found, own = self.solver.step(own, z, fz, torch.where(turn == 0, residual, 0))
            proposal = torch.where(turn == 0, found, proposal)
        return proposal, SecondTryMemory(own, broyden, turn)

    def forget(self, memory: SecondTryMemory, rows: Tensor) -> SecondTryMemory:
        own, broyden, turn = memory
        if own is not None and isinstance(self.solver, RestartingSolver):
            own = self.solver.forget(own, rows)
        if broyden is not None:
            broyden = self.broyden.forget(broyden, rows)
        return SecondTryMemory(own, broyden, turn)
