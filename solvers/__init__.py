"""Batched fixed-point solvers: find `z* = f(z*, *args)` for every row of a batch, each on its own."""

from .anderson import Anderson
from .broyden import Broyden
from .gmres import GMRES
from .monotone import Monotone
from .newton import NewtonKrylov
from .picard import Picard
from .reversible import Reversible
from .solution import ConvergenceError, Solution, Status
from .solver import QuasiNewtonSolver, RestartingSolver, Solver
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
    "QuasiNewtonSolver",
    "RestartingSolver",
    "Reversible",
    "Solution",
    "Solver",
    "State",
    "Status",
    "solve",
]
