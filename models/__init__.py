"""Networks designed from first-order optimisation methods, in explicit, implicit, equilibrium and parallel readings."""

import implicit

if not hasattr(implicit, "siblings"):
    raise ImportError(
        f"models needs the package implicit of implicit-networks, but Python finds {implicit.__spec__.origin} first: "
        "rename that one, or start Python where it is not on sys.path"
    )

from solvers import __version__ as __version__

from .blocks import Blocks
from .injection import DiagonalInjection
from .learned_start import LearnedStart
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
    coefficient,
)
from .networks import convnext_form, image_network, vector_network, vit_form
from .optdnn import OptDEQ, OptDNN
from .paraformer import ParaFormer, TokenParaFormer, VectorParaFormer
from .parallel import Newton, Parallel, UnlikeError, Unrolled, lyapunov_exponent, parallel_evaluate, unroll
from .proximal import ProximalStep
from .readings import Explicit, Implicit, InfiniteDepth, Sweeps
from .segments import segments
from .transforms import AttentionMLP, Conv, ConvNeXt, Dense, Fidelity, Sum
from .well_posed import ContractiveConv, ContractiveDense, MonotoneConv, MonotoneDense

__all__ = [
    "AGD3",
    "APG2",
    "FISTA",
    "METHODS",
    "AttentionMLP",
    "Blocks",
    "ContractiveConv",
    "ContractiveDense",
    "Conv",
    "ConvNeXt",
    "Dense",
    "DenselyConnected",
    "DiagonalInjection",
    "Explicit",
    "Fidelity",
    "GradientDescent",
    "HeavyBall",
    "Implicit",
    "InfiniteDepth",
    "Learned",
    "LearnedStart",
    "LinearizedADMM",
    "Method",
    "MonotoneConv",
    "MonotoneDense",
    "Nesterov",
    "Newton",
    "OptDEQ",
    "OptDNN",
    "ParaFormer",
    "Parallel",
    "PrimalDual",
    "ProximalGradient",
    "ProximalPoint",
    "ProximalStep",
    "Sum",
    "Sweeps",
    "TokenParaFormer",
    "UnlikeError",
    "Unrolled",
    "VectorParaFormer",
    "coefficient",
    "convnext_form",
    "image_network",
    "lyapunov_exponent",
    "parallel_evaluate",
    "segments",
    "unroll",
    "vector_network",
    "vit_form",
]
