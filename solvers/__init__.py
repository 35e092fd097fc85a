"""Batched fixed-point solvers: find `z* = f(z*, *args)` for every row of a batch, each on its own."""

from .anderson import Anderson
from .broyden import Broyden
from .gmres import GMRES
from .monotone import Monotone
from .newton import NewtonKrylov
from .picard import Picard
from .solution import ConvergenceError, Solution, Status
from .solver import RestartingSolver, Solver
from .solving import solve
from .state import State

__all__ = [
    "GMRES",
    "Anderson",
    "Broyden",
    "ConvergenceError",
    "Monotone",
    "NewtonKrylov",
    "Picard",
    "RestartingSolver",
    "Solution",
    "Solver",
    "State",
    "Status",
    "solve",
]
