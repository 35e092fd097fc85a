"""Where Triton kernels can run."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .caller import level_of_caller

LARGE = 2**22
"""Entries of a state from which a kernel outlasts its launch, which costs more than launches by PyTorch."""
LONG, MANY = 2**18, 128
"""Entries of a row's history that one program reads in some ten launches' time; rows whose programs fill a GPU."""
LONGEST = 2**30
"""Entries of a row below which 32 bits count those of a pair."""
_replayed = threading.local()
_compiling: dict[int, bool] = {}
"""Whether Triton works, by device."""


@contextmanager
def replayed() -> Iterator[None]:
    """A context in which launches cost nothing: calls are recorded, or warm up for recording."""
    before = getattr(_replayed, "now", False)
    _replayed.now = True
    try:
        yield
    finally:
        _replayed.now = before


def fusible(tensor: Tensor) -> bool:
    """Whether kernels work on the tensor and pay: single or double precision, on a GPU that Triton compiles for."""
    return (
        tensor.is_cuda
        and tensor.numel() >= (1 if getattr(_replayed, "now", False) else LARGE)
        and tensor.shape[-1] < LONGEST
        and tensor.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()  # the compiler fuses by itself
        and type(tensor) is Tensor  # a tracer's tensor has no values, hence no address
        and _compiles(tensor.get_device())
    )


def fusible_by_row(state: Tensor, history: Tensor) -> bool:
    """`fusible`, for kernels with one program per row, which reads that row of the history."""
    return fusible(state) and (len(state) >= MANY or history.numel() <= len(state) * LONG)


def _compiles(device: int) -> bool:
    """Whether Triton works: PyTorch's Linux builds include it, but it compiles its launchers with a C compiler."""
    if device not in _compiling:
        if torch.cuda.is_current_stream_capturing():
            return False  # a trial would become part of the capture
        _compiling[device] = _tried(device)
    return _compiling[device]


def _tried(device: int) -> bool:
    if torch.cuda.get_device_capability(device) < (7, 0):
        return False
    try:
        from .norms_triton import residual_and_norms
    except ImportError:
        return False
    try:
        one = torch.ones(1, 1, device=torch.device("cuda", device))
        residual_and_norms(one, one)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        warnings.warn(
            f"Triton cannot compile here ({type(error).__name__}: {error}): PyTorch's slower operations are used "
            "instead. Triton needs a C compiler and the Python headers",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )
        return False
    return True
