"""The peers on one problem: mean evaluations of f per row until the relative test holds, infinite for a failure."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from .counting import Finished, Watch
from .jax_peers import with_jaxopt, with_optimistix
from .peers import LIMIT, TORCHDEQ, installed, torchdeq_solver
from .problem import Problem

JAXOPT = {"plain": "FixedPointIteration", "anderson": "AndersonAcceleration"}
OPTIMISTIX = {"plain": "FixedPointIteration", "newton": "Newton", "chord": "Chord"}
"""Name of a method in the tables → the peer's name for it."""

Contender = Callable[[Problem, float], float | None]
"""(problem, rtol) → evaluations; None where the problem cannot be put to the peer."""


def contenders() -> dict[str, Contender]:
    """The contenders of all installed peers."""
    found: dict[str, Contender] = {}
    if installed("torchdeq"):
        found |= {f"torchdeq {name}": partial(_torchdeq, method) for name, method in TORCHDEQ.items()}
    if installed("scipy"):
        found |= {f"scipy {method}": partial(_scipy, method) for method in ("anderson", "broyden1", "krylov")}
    if installed("jaxopt"):
        found |= {f"jaxopt {name}": partial(with_jaxopt, method) for name, method in JAXOPT.items()}
    if installed("optimistix"):
        found |= {f"optimistix {name}": partial(with_optimistix, method) for name, method in OPTIMISTIX.items()}
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

    # on its way to a failure SciPy warns of overflow, and raises on values that are not finite
    failures = (Finished, ValueError, ArithmeticError, np.linalg.LinAlgError)
    with suppress(*failures), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        root(residual, problem.z0.flatten().numpy(), method=method, options={"fatol": 0.0, "maxiter": LIMIT})
    return watch.evaluations
