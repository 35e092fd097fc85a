"""Lyapunov exponents of plain iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers import State
from solvers.problem import prepare
from solvers.rules.first_way import first_way
from solvers.rules.jacobian_products import WAYS, spread_at

from ..calls import detached
from ..coupling import refuse_coupled
from ..draws import normal
from ..parametrized import one_weight


def lyapunov_exponents(
    f: Callable[..., State], z: State, args: tuple[Any, ...] = (), *, k: int = 1, steps: int = 1000, discard: int = 100
) -> Tensor:
    """The k largest Lyapunov exponents of `z ↦ f(z)`, (batch, k), float64 on the CPU, the largest first.

    A perturbation grows like `e^{λ t}` over t steps. If all exponents are below 0, the iteration settles; at 0 it
    cycles; above 0 it is chaotic, and no number of plain steps converges. At a fixed point they are `log |eigenvalue|`.
    Computed by QR factorisations of the products of Jacobians along the orbit. Source: Benettin et al., Meccanica 15
    (1980).

    Args:
        f, args: as in `solvers.solve`.
        z: where the orbit starts.
        k: how many, at most the entries of a row.
        steps: to average over.
        discard: steps before these, in which orbit and directions settle.

    Raises:
        ValueError: a number is out of range, or the rows depend on each other.
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return lyapunov_exponents(f, *detached((z, args)), k=k, steps=steps, discard=discard)
    problem = prepare(f, z, args)
    dim = sum(problem.layout.sizes)
    for name, value, least, most in (("k", k, 1, dim), ("steps", steps, 1, None), ("discard", discard, 0, None)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least or (most and value > most):
            allowed = f"from {least} to {most}" if most else f"of at least {least}"
            raise ValueError(f"lyapunov_exponents: {name}={value!r} must be an integer {allowed}")
    with torch.no_grad(), one_weight(f):
        flat = problem.layout.flatten(z).detach()
        refuse_coupled("lyapunov_exponents", problem, flat)
        directions = normal((len(flat), dim, k), flat)
        directions = torch.linalg.qr(directions).Q
        way, *_ = first_way(problem, problem, flat, problem(flat), directions[:, :, 0])
        total = torch.zeros(len(flat), k, dtype=torch.float64, device="cpu")
        for step in range(discard + steps):
            image = problem(flat)
            product = WAYS[way](problem, flat, image, spread_at(problem, flat, image))
            columns = [product(directions[:, :, column]) for column in range(k)]
            directions, triangle = torch.linalg.qr(torch.stack(columns, dim=2))
            flat = image
            if step >= discard:
                total += triangle.diagonal(dim1=1, dim2=2).abs().log().double().cpu()
    return (total / steps).sort(dim=1, descending=True).values
