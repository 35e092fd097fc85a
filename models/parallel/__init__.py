"""Networks evaluated in parallel over their depth."""

from .contractivity import lyapunov_exponent
from .evaluate import parallel_evaluate
from .likeness import UnlikeError
from .module import Parallel

__all__ = ["Parallel", "UnlikeError", "lyapunov_exponent", "parallel_evaluate"]
