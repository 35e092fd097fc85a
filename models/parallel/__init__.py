"""Networks evaluated in parallel over their depth."""

from .evaluate import parallel_evaluate
from .likeness import UnlikeError
from .lyapunov import lyapunov_exponent
from .module import Parallel
from .newton import Newton
from .sequence import Unrolled, unroll

__all__ = ["Newton", "Parallel", "UnlikeError", "Unrolled", "lyapunov_exponent", "parallel_evaluate", "unroll"]
