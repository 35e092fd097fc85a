"""Least squares with an l1 penalty, `½‖Az − y‖² + λ‖z‖₁`, as networks of its algorithms, ours and deepinv's."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from implicit import ImplicitGradient
from models import Nesterov, OptDEQ, OptDNN
from solvers import Solver

from .problem import normal

Seen = Callable[[Tensor, Tensor], Tensor]
"""(z, step(z)) of an evaluation → step(z), after observing it."""
Network = Callable[[Tensor], Tensor]
"""y → z, differentiable."""
STEPS = 2000
MOMENTUM = Nesterov(momentum=lambda k: (k + 1) / (k + 2))
"""deepinv's schedule; our default is one step behind it."""


def as_it_is(z: Tensor, image: Tensor) -> Tensor:
    """Return the image, without observing it."""
    return image


@dataclass(frozen=True)
class Lasso:
    matrix: Tensor  # (equations, unknowns)
    target: Tensor  # (rows, equations)
    weight: nn.Parameter
    """λ, learned."""

    @property
    def rate(self) -> float:
        """1 over the largest curvature."""
        return torch.linalg.matrix_norm(self.matrix.double(), 2).item() ** -2

    def start(self, target: Tensor) -> Tensor:
        """`Aᵀy`, as in deepinv."""
        return target @ self.matrix


def lasso(rows: int, equations: int, unknowns: int, dtype: torch.dtype = torch.float64) -> Lasso:
    """One matrix, and for each row a sparse truth of its own."""
    matrix, truth = normal(6, equations, unknowns), normal(7, rows, unknowns)
    truth = torch.where(truth.abs() > 1.5, 3.0 * truth.sign(), 0.0)
    target = truth @ matrix.T + 0.01 * normal(8, rows, equations)
    # λ in float32, as deepinv makes its own
    return Lasso(matrix.to(dtype), target.to(dtype), nn.Parameter(torch.tensor(0.0625 * equations)))


class Shrinkage(nn.Module):
    """The step of PGD, `(z, y) ↦ shrink(z − s Aᵀ(Az − y), sλ)`."""

    def __init__(self, problem: Lasso, seen: Seen = as_it_is) -> None:
        super().__init__()
        self.matrix, self.rate, self.weight, self.seen = problem.matrix, problem.rate, problem.weight, seen

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """(rows, unknowns), like z."""
        forward = z - self.rate * (z @ self.matrix.T - y) @ self.matrix
        return self.seen(z, forward.sign() * (forward.abs() - self.rate * self.weight).relu())


class Increment(nn.Module):
    """`T(z, y) = step(z, y) − z`: `gd` with this transform is PGD, `Nesterov` with it is FISTA."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Like z."""
        moved: Tensor = self.step(z, y) - z
        return moved


def unrolled(problem: Lasso, method: str, depth: int, seen: Seen = as_it_is) -> Network:
    """`depth` tied steps of PGD or FISTA."""
    net = OptDNN(MOMENTUM if method == "FISTA" else "gd", [Increment(Shrinkage(problem, seen))] * depth)
    return lambda y: net(problem.start(y), y)


def equilibrium(problem: Lasso, solver: Solver, backward: Solver, rtol: float = 1e-4, seen: Seen = as_it_is) -> OptDEQ:
    """PGD at infinite depth; one tolerance for both solves."""
    return OptDEQ(
        "gd",
        Increment(Shrinkage(problem, seen)),
        solver=solver,
        gradient=ImplicitGradient(backward, rtol=rtol, max_steps=STEPS),
        rtol=rtol,
        atol=0.0,
        max_steps=STEPS,
        initial=problem.start,
    )


def deepinv(problem: Lasso, method: str, steps: int, seen: Seen = as_it_is, **options: Any) -> Network:
    """deepinv's PGD or FISTA on the same problem, unrolled; an equilibrium with `DEQ=…`."""
    optim, physics = importlib.import_module("deepinv.optim"), importlib.import_module("deepinv.physics")
    matrix, points = problem.matrix, [problem.matrix]

    class Fidelity(optim.L2):  # type: ignore[name-defined, misc]
        def grad(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
            points[0] = x
            gradient: Tensor = super().grad(x, *args, **options)
            return gradient

    class Penalty(optim.L1Prior):  # type: ignore[name-defined, misc]
        def prox(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
            return seen(points[0], super().prox(x, *args, **options))

    penalty = Penalty()
    penalty.explicit_prior = False  # otherwise it evaluates the cost in every step, which nothing here needs
    model = getattr(optim, method)(
        data_fidelity=Fidelity(),
        prior=penalty,
        stepsize=problem.rate,
        lambda_reg=[problem.weight],
        max_iter=steps,
        unfold=True,
        trainable_params=[],
        **options,
    )
    operator = physics.LinearPhysics(A=lambda z: z @ matrix.T, A_adjoint=lambda y: y @ matrix)

    def run(y: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns that there is no cost function
            z: Tensor = model(y, operator)
        return z

    return run
