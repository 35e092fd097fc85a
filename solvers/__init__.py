"""Batched fixed-point solvers: find `z* = f(z*, *args)` for every row of a batch, each on its own."""

from .anderson import Anderson
from .broyden import Broyden
from .loop import solve
from .picard import Picard
from .solution import ConvergenceError, Solution, Status
from .solver import Solver
from .state import State

__all__ = ["Anderson", "Broyden", "ConvergenceError", "Picard", "Solution", "Solver", "State", "Status", "solve"]
