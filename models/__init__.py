"""Networks designed from first-order optimisation methods, in explicit, implicit, equilibrium and parallel readings."""

from .methods import (
    AGD3,
    APG2,
    FISTA,
    METHODS,
    DenselyConnected,
    GradientDescent,
    HeavyBall,
    Learned,
    LinearizedADMM,
    Method,
    Nesterov,
    PrimalDual,
    ProximalGradient,
    ProximalPoint,
)
from .optdnn import OptDEQ, OptDNN
from .paraformer import ParaFormer
from .parallel import Parallel, parallel_evaluate
from .proximal import ProximalStep
from .resolvable import ContractiveConv, ContractiveDense, MonotoneConv, MonotoneDense
from .transforms import Conv, Dense, Fidelity

__all__ = [
    "AGD3",
    "APG2",
    "FISTA",
    "METHODS",
    "ContractiveConv",
    "ContractiveDense",
    "Conv",
    "Dense",
    "DenselyConnected",
    "Fidelity",
    "GradientDescent",
    "HeavyBall",
    "Learned",
    "LinearizedADMM",
    "Method",
    "MonotoneConv",
    "MonotoneDense",
    "Nesterov",
    "OptDEQ",
    "OptDNN",
    "ParaFormer",
    "Parallel",
    "PrimalDual",
    "ProximalGradient",
    "ProximalPoint",
    "ProximalStep",
    "parallel_evaluate",
]
