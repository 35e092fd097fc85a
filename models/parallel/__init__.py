"""Networks evaluated in parallel over their depth."""

from .evaluate import parallel_evaluate
from .module import Parallel

__all__ = ["Parallel", "parallel_evaluate"]
