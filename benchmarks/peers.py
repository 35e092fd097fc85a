"""The peers: which are installed, and calls to them that several benchmarks share."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

TORCHDEQ = {"plain": "fixed_point_iter", "anderson": "anderson", "broyden": "broyden"}
"""Name of a method in the tables → torchdeq's name for it."""
LIMIT = 2000
"""Evaluations of f that a row may take."""


def installed(name: str) -> ModuleType | None:
    """The peer's module, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jaxopt announces its retirement
            return importlib.import_module(name)
    except ImportError:
        return None


def missing(peers: Sequence[str]) -> list[str]:
    """One line for the peers that are not installed."""
    absent = [name for name in peers if installed(name) is None]
    if not absent:
        return []
    return [f"columns of {', '.join(absent)} are skipped: not installed, see pip install -e '.[bench]'"]


def versions(peers: Sequence[str]) -> dict[str, str]:
    """Versions of the installed peers, and of torch."""
    return {name: importlib.metadata.version(name) for name in ("torch", *peers) if installed(name) is not None}


def torchdeq_solver(method: str) -> Callable[..., tuple[Tensor, Any, Any]]:
    """`(f, z0, max_iter=, tol=, stop_mode=, …) → (value, trajectory, statistics)`."""
    solver: Callable[..., tuple[Tensor, Any, Any]] = importlib.import_module("torchdeq.solver").get_solver(method)
    return solver


def torchdeq_layer(method: str, *, rtol: float, steps: int) -> Callable[..., Any]:
    """torchdeq's layer with the implicit gradient, and one solver and relative tolerance forward and backward."""
    layer: Callable[..., Any] = importlib.import_module("torchdeq").get_deq(
        ift=True,
        f_solver=method,
        b_solver=method,
        f_tol=rtol,
        b_tol=rtol,
        f_stop_mode="rel",
        b_stop_mode="rel",
        f_max_iter=steps,
        b_max_iter=steps,
    )
    return layer


def torchdeq_equilibrium(method: str, cell: nn.Module, x: Tensor, *, rtol: float, steps: int) -> Tensor:
    """The equilibrium that this layer finds from zero."""
    z: Tensor = torchdeq_layer(method, rtol=rtol, steps=steps)(lambda z: cell(z, x), torch.zeros_like(x))[0][-1]
    return z
