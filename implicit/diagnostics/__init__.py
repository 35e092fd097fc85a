"""Numbers that tell why an equilibrium converges, how fast, and whether its gradient can be trusted."""

from .audit import GradientError, compare_gradients, gradient_audit
from .bounds import ErrorBound, error_bound
from .diagnosis import diagnose
from .findings import Finding
from .lyapunov import lyapunov_exponents
from .paths import PathIndependence, path_independence
from .penalty import jacobian_penalty
from .rates import Tail, convergence_rate, tails
from .residuals import residual_quantiles
from .spectrum import eigenvalues, spectral_norm, spectral_radius
from .tables import Line, Table
from .work_precision import Work, compare_solvers

__all__ = [
    "ErrorBound",
    "Finding",
    "GradientError",
    "Line",
    "PathIndependence",
    "Table",
    "Tail",
    "Work",
    "compare_gradients",
    "compare_solvers",
    "convergence_rate",
    "diagnose",
    "eigenvalues",
    "error_bound",
    "gradient_audit",
    "jacobian_penalty",
    "lyapunov_exponents",
    "path_independence",
    "residual_quantiles",
    "spectral_norm",
    "spectral_radius",
    "tails",
]
