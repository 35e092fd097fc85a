"""Eigenvalues and norms of the Jacobian `J = ∂f/∂z`, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigs, svds
from torch import Tensor

from solvers import ConvergenceError, State
from solvers.problem import Problem, prepare

from ..calls import detached
from ..compiled import uncompiled_cells
from ..coupling import refuse_coupled
from ..few_rows import few_rows
from ..graph import refuse_hidden
from ..parametrized import one_weight
from .jacobians import NotFiniteError, Transposed, dense_jacobians, tracked

DENSE = 128
"""Largest state, in entries per row, whose Jacobian is formed at once; beyond, Krylov methods use products alone."""
LARGEST = 2048
"""Largest state whose Jacobian is formed where they fail, as for many eigenvalues of one modulus."""
DIRECTIONS = 40
"""Fewest directions that Arnoldi's iteration keeps. More take more products per restart, and fewer restarts."""
RESTARTS = 100
"""Restarts of Arnoldi's iteration before the Jacobian is formed; three times as many if it is too large to form."""


def eigenvalues(f: Callable[..., State], z: State, args: tuple[Any, ...] = (), *, k: int = 6) -> Tensor:
    """The k eigenvalues of `J = ∂f/∂z` of largest modulus, (batch, k), complex128 on the CPU, the largest first.

    They tell how plain iteration behaves near z: it converges if all lie within the unit circle, at the rate of the
    largest. Computed from the dense Jacobian for states of up to 128 entries, and by ARPACK's Arnoldi iteration on
    vector–Jacobian products beyond, to a relative 1e-6 or what the dtype resolves; where that fails, from the dense
    Jacobian for up to 2048 entries. A row whose Jacobian is not finite is NaN. Source: Lehoucq, Sorensen, Yang, "ARPACK
    Users' Guide", SIAM 1998.

        eigenvalues(layer.cell, layer(x), (x,))

    Args:
        f: as in `solvers.solve`; its rows are independent. A graph, whose nodes are not rows, is one row: z[None].
        z: where to differentiate, usually the equilibrium.
        args: as in `solvers.solve`.
        k: how many, at most the entries of a row, and two fewer for more than 128 entries.

    Raises:
        ValueError: k is out of range, the rows depend on each other, or f depends on z outside of autograd's graph.
        ConvergenceError: Arnoldi's iteration failed.
    """

    def dense(jacobian: NDArray[Any]) -> NDArray[Any]:
        values = np.linalg.eigvals(jacobian)
        return values[np.argsort(-abs(values), kind="stable")][:k]

    def krylov(transposed: LinearOperator, start: NDArray[Any], tolerance: float) -> NDArray[Any]:
        dim = transposed.shape[0]
        more = min(k + 2, dim - 2)  # the last one wanted must not be half of a conjugate pair
        kept, restarts = min(max(DIRECTIONS, 2 * more + 1), dim), RESTARTS if dim <= LARGEST else 3 * RESTARTS
        values = eigs(
            transposed, k=more, ncv=kept, maxiter=restarts, v0=start, tol=tolerance, return_eigenvectors=False
        )
        return values[np.argsort(-abs(values), kind="stable")][:k]

    return torch.from_numpy(_by_row("eigenvalues", f, z, args, k, np.complex128, dense, krylov))


def spectral_radius(f: Callable[..., State], z: State, args: tuple[Any, ...] = ()) -> Tensor:
    """`ρ(J) = max |λ|`, (batch,) float64: above 1, plain iteration diverges from z, however close it starts.

    Anderson, Broyden and Newton–Krylov may converge nevertheless. Arguments and errors are those of `eigenvalues`.
    """
    return eigenvalues(f, z, args, k=1)[:, 0].abs()


def spectral_norm(f: Callable[..., State], z: State, args: tuple[Any, ...] = ()) -> Tensor:
    """`‖J‖₂`, the largest singular value, (batch,) float64: below 1, each step of plain iteration contracts near z.

    It is at least `spectral_radius`, and much larger if J is far from normal: the residual may then rise before it
    falls. Arguments and errors are those of `eigenvalues`.
    """

    def dense(jacobian: NDArray[Any]) -> NDArray[Any]:
        return np.linalg.svd(jacobian, compute_uv=False)[:1]

    def krylov(transposed: LinearOperator, start: NDArray[Any], tolerance: float) -> NDArray[Any]:
        values: NDArray[Any] = svds(transposed, k=1, v0=start, tol=tolerance, return_singular_vectors=False)
        return values

    return torch.from_numpy(_by_row("spectral_norm", f, z, args, 1, np.float64, dense, krylov))[:, 0]


def _by_row(
    name: str,
    f: Callable[..., State],
    z: State,
    args: tuple[Any, ...],
    k: int,
    dtype: Any,
    dense: Callable[[NDArray[Any]], NDArray[Any]],
    krylov: Callable[[LinearOperator, NDArray[Any], float], NDArray[Any]],
) -> NDArray[Any]:
    """(batch, k): for each row, `dense` of its Jacobian, or `krylov` of its transposed Jacobian as an operator."""
    with torch.inference_mode(False), uncompiled_cells():  # inference mode would not allow derivatives
        z, args = detached((z, args))
        problem = prepare(f, z, args)
        return _rows(name, problem, problem.layout.flatten(z), k, dtype, dense, krylov)


def _rows(
    name: str,
    problem: Problem,
    flat: Tensor,
    k: int,
    dtype: Any,
    dense: Callable[[NDArray[Any]], NDArray[Any]],
    krylov: Callable[[LinearOperator, NDArray[Any], float], NDArray[Any]],
) -> NDArray[Any]:
    dim = sum(problem.layout.sizes)
    most = dim if dim <= DENSE else dim - 2
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= most:
        raise ValueError(f"{name}: k={k!r} must be an integer from 1 to {most}, for rows of {dim} numbers")
    batch = problem.layout.batch
    found = np.full((batch, k), np.nan, dtype=dtype)
    tolerance = max(1e-6, 100 * problem.rounding)
    with torch.no_grad(), one_weight(problem.f):
        refuse_hidden(name, problem, *tracked(problem, flat))
        refuse_coupled(name, problem, flat)
        if dim <= DENSE:
            jacobians = dense_jacobians(problem, flat)
            for row, jacobian in enumerate(jacobians):
                if np.isfinite(jacobian).all():
                    found[row] = dense(jacobian)
            return found
        for row in range(batch):
            index = torch.tensor([row], device=flat.device)
            alone = few_rows(problem, flat, index)
            operator = Transposed(alone, flat[index])
            start = np.random.default_rng(0).standard_normal(dim)
            try:
                # ARPACK squares the products, and cannot start if the Jacobian is 0
                operator.scale = abs(operator.matvec(start)).max()
                found[row] = operator.scale * krylov(operator, start, tolerance) if operator.scale else np.zeros(k)
            except NotFiniteError:
                continue
            except ArpackError as error:
                if dim > LARGEST:
                    raise ConvergenceError(
                        f"{name}: ARPACK found nothing for row {row} ({error}); its products are exact to "
                        f"{tolerance:.0e} at best: use float64, or look at other rows"
                    ) from error
                found[row] = dense(dense_jacobians(alone, flat[index])[0])
    return found
