"""The peers on one problem: mean evaluations of f a row until the relative test holds, infinite for a failure."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .counting import Finished, Watch
from .problem import Affine, Problem, TanhLayer

PEERS = ("torchdeq", "scipy", "jaxopt")
TORCHDEQ = {"plain": "fixed_point_iter", "anderson": "anderson", "broyden": "broyden"}
JAXOPT = {"plain": "FixedPointIteration", "anderson": "AndersonAcceleration"}
"""What the tables call a method → what the peer calls it."""
LIMIT = 2000
"""Evaluations of f a row may take."""

Contender = Callable[[Problem, float], float | None]
"""(problem, rtol) → evaluations; None where the problem cannot be put to the peer."""


def installed(name: str) -> ModuleType | None:
    """The peer's module, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jaxopt announces its retirement
            return importlib.import_module(name)
    except ImportError:
        return None


def missing(peers: Sequence[str]) -> list[str]:
    """One line for those that are not there."""
    absent = [name for name in peers if installed(name) is None]
    if not absent:
        return []
    return [f"columns of {', '.join(absent)} are skipped: not installed, see pip install -e '.[bench]'"]


def versions(peers: Sequence[str]) -> dict[str, str]:
    """Of those that are there, and of torch."""
    return {name: importlib.metadata.version(name) for name in ("torch", *peers) if installed(name) is not None}


def torchdeq_solver(method: str) -> Callable[..., tuple[Tensor, Any, Any]]:
    """`(f, z0, max_iter=, tol=, stop_mode=, …) → (value, trajectory, statistics)`."""
    solver: Callable[..., tuple[Tensor, Any, Any]] = importlib.import_module("torchdeq.solver").get_solver(method)
    return solver


def contenders() -> dict[str, Contender]:
    """Of the peers that are installed."""
    found: dict[str, Contender] = {}
    if installed("torchdeq"):
        found |= {f"torchdeq {name}": partial(_torchdeq, method) for name, method in TORCHDEQ.items()}
    if installed("scipy"):
        found |= {f"scipy {method}": partial(_scipy, method) for method in ("anderson", "broyden1", "krylov")}
    if installed("jaxopt"):
        found |= {f"jaxopt {name}": partial(_jaxopt, method) for name, method in JAXOPT.items()}
    return found


def _torchdeq(method: str, problem: Problem, rtol: float) -> float:
    watch = Watch(len(problem.z0), rtol, LIMIT)
    singular = torch.linalg.LinAlgError  # type: ignore[attr-defined]
    with suppress(Finished, singular):  # of its small system
        torchdeq_solver(method)(watch.over(problem.f), problem.z0, max_iter=LIMIT, tol=rtol, stop_mode="rel")
    return watch.evaluations


def _scipy(method: str, problem: Problem, rtol: float) -> float:
    total = 0.0
    for row in range(len(problem.z0)):
        total += _scipy_row(method, problem.row(row), rtol)
        if total == math.inf:
            break
    return total / len(problem.z0)


def _scipy_row(method: str, problem: Problem, rtol: float) -> float:
    root = importlib.import_module("scipy.optimize").root
    watch, shape = Watch(1, rtol, LIMIT), problem.z0.shape
    f = watch.over(problem.f)

    def residual(z: NDArray[np.float64]) -> NDArray[np.float64]:
        point = torch.from_numpy(z).reshape(shape)
        return (f(point) - point).flatten().numpy()

    # on its way to a failure it warns of overflow, and raises on what is not finite
    failures = (Finished, ValueError, ArithmeticError, np.linalg.LinAlgError)
    with suppress(*failures), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        root(residual, problem.z0.flatten().numpy(), method=method, options={"fatol": 0.0, "maxiter": LIMIT})
    return watch.evaluations


def _jaxopt(method: str, problem: Problem, rtol: float) -> float | None:
    jax, jaxopt = importlib.import_module("jax"), installed("jaxopt")
    jax.config.update("jax_enable_x64", True)
    layer, numpy = problem.f, jax.numpy
    if isinstance(layer, Affine):
        matrix, shifts = numpy.asarray(layer.matrix.numpy()), layer.shift
    elif isinstance(layer, TanhLayer):
        matrix, shifts = numpy.asarray(layer.weight.numpy()), layer.inputs
    else:
        return None
    watches: list[Watch] = []

    def note(residual: Any, scale: Any) -> None:
        watches[-1].note([float(residual)], [float(scale)])

    def f(z: Any, shift: Any) -> Any:
        image = matrix @ z + shift
        image = numpy.tanh(image) if isinstance(layer, TanhLayer) else image
        jax.debug.callback(note, numpy.linalg.norm(image - z), numpy.linalg.norm(image))
        return image

    solver = getattr(jaxopt, method)(f, maxiter=LIMIT, tol=0.0)
    update = jax.jit(solver.update)
    for z0, shift in zip(problem.z0.numpy(), shifts.numpy()):
        watches.append(Watch(1, rtol, LIMIT))
        z, state = numpy.asarray(z0), solver.init_state(numpy.asarray(z0), shift)
        jax.effects_barrier()
        watches[-1] = Watch(1, rtol, LIMIT)  # what was evaluated so far serves its types only
        while not watches[-1].done:
            z, state = update(z, state, shift)
            jax.effects_barrier()
    return float(np.mean([watch.evaluations for watch in watches]))
