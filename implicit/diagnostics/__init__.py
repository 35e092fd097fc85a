"""Numbers that tell why an equilibrium converges, how fast, and what its Jacobian looks like."""

from .audit import GradientError, compare_gradients, gradient_audit
from .penalty import jacobian_penalty
from .rates import Tail, convergence_rate, tails
from .residuals import residual_quantiles
from .spectrum import eigenvalues, spectral_norm, spectral_radius

__all__ = [
    "GradientError",
    "Tail",
    "compare_gradients",
    "convergence_rate",
    "eigenvalues",
    "gradient_audit",
    "jacobian_penalty",
    "residual_quantiles",
    "spectral_norm",
    "spectral_radius",
    "tails",
]
