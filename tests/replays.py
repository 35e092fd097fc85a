"""A stand-in for CUDA graphs on a processor: operations are recorded and run again, the Python around them is not."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from solvers.loops.buffers import share
from solvers.loops.graphs import Recording
from solvers.state import tree_leaves


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.found.append((function, args, kwargs or {}, result))
        return result


class Replayed(Recording):
    """Operations with the memory they read and write."""

    def __init__(self, function):
        with _Operations() as operations:
            self._result = function()
        self._operations, self._fresh = operations.found, True

    @torch.no_grad()
    def replay(self):
        # as the replay of a graph, this counts no changes of what it writes to
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)):
            return self._replay()

    def _replay(self):
        if not self._fresh:
            for function, args, kwargs, result in self._operations:
                for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.layout != torch.strided:
                        old.copy_(new)  # of its .data, the parts would be replaced
                    elif isinstance(old, Tensor) and not share(old, new):
                        old.data.copy_(new)
        self._fresh = False
        return self._result
