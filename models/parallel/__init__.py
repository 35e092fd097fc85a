"""Networks evaluated in parallel over their depth."""

from .contractivity import lyapunov_exponent
from .evaluate import parallel_evaluate
from .likeness import UnlikeError
from .module import Parallel
from .newton import Newton
from .sequence import Unrolled, unroll

__all__ = ["Newton", "Parallel", "UnlikeError", "Unrolled", "lyapunov_exponent", "parallel_evaluate", "unroll"]
