"""Networks designed from first-order optimisation methods, in explicit, implicit, equilibrium and parallel readings."""

from .methods import FISTA, METHODS, GradientDescent, Method, Nesterov, ProximalGradient, ProximalPoint
from .optdnn import OptDEQ, OptDNN
from .paraformer import ParaFormer
from .parallel import Parallel, parallel_evaluate
from .proximal import ProximalStep
from .resolvable import ContractiveConv, ContractiveDense, MonotoneConv, MonotoneDense
from .transforms import Conv, Dense, Fidelity

__all__ = [
    "FISTA",
    "METHODS",
    "ContractiveConv",
    "ContractiveDense",
    "Conv",
    "Dense",
    "Fidelity",
    "GradientDescent",
    "Method",
    "MonotoneConv",
    "MonotoneDense",
    "Nesterov",
    "OptDEQ",
    "OptDNN",
    "ParaFormer",
    "Parallel",
    "ProximalGradient",
    "ProximalPoint",
    "ProximalStep",
    "parallel_evaluate",
]
