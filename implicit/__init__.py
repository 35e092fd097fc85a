"""Implicit layers: differentiate through a fixed point, and see how it converged."""

from .siblings import check_siblings

check_siblings()

from solvers import __version__ as __version__

from .dropout import LockedDropout
from .equilibrium import Equilibrium, fixed_point, root
from .gradients import (
    AdjointGradient,
    Evaluation,
    Gradient,
    ImplicitGradient,
    NeumannGradient,
    PhantomGradient,
    ReversibleGradient,
    ShineGradient,
    SplittingGradient,
    Unconverged,
    UnrolledGradient,
    with_value,
)
from .logs import ConvergenceWarning, record
from .looped import Looped
from .multistart import MultistartSolution, multistart
from .parametrized import one_weight
from .split_cell import SplitCell

__all__ = [
    "AdjointGradient",
    "ConvergenceWarning",
    "Equilibrium",
    "Evaluation",
    "Gradient",
    "ImplicitGradient",
    "LockedDropout",
    "Looped",
    "MultistartSolution",
    "NeumannGradient",
    "PhantomGradient",
    "ReversibleGradient",
    "ShineGradient",
    "SplitCell",
    "SplittingGradient",
    "Unconverged",
    "UnrolledGradient",
    "fixed_point",
    "multistart",
    "one_weight",
    "record",
    "root",
    "with_value",
]
