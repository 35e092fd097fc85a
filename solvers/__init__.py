"""Batched fixed-point solvers: find `z* = f(z*, *args)`, or `F(z*, *args) = 0`, for every row of a batch."""

from .loops.captured import Captured
from .loops.compiled import Compiled
from .loops.eager import Eager, Loop
from .norms import Entrywise, Euclidean, Norm
from .problem import Shared
from .rules.anderson import Anderson
from .rules.broyden import Broyden
from .rules.gmres import GMRES
from .rules.monotone import Monotone
from .rules.newton import NewtonKrylov
from .rules.noisy import NoisyPicard
from .rules.peaceman_rachford import PeacemanRachford
from .rules.picard import Picard
from .rules.reversible import Reversible
from .rules.rule import QuasiNewtonSolver, RestartingSolver, Solver
from .settings import Settings, SolveOptions
from .solution import ConvergenceError, Solution
from .solve import root, solve
from .state import State
from .status import Status

__version__ = "0.2.0"
"""The version of the distribution; setup.cfg reads it from here."""

__all__ = [
    "GMRES",
    "Anderson",
    "Broyden",
    "Captured",
    "Compiled",
    "ConvergenceError",
    "Eager",
    "Entrywise",
    "Euclidean",
    "Loop",
    "Monotone",
    "NewtonKrylov",
    "NoisyPicard",
    "Norm",
    "PeacemanRachford",
    "Picard",
    "QuasiNewtonSolver",
    "RestartingSolver",
    "Reversible",
    "Settings",
    "Shared",
    "Solution",
    "SolveOptions",
    "Solver",
    "State",
    "Status",
    "root",
    "solve",
]
