"""`solve` and `root`, the entry points."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo
from typing_extensions import Unpack

from .iterate import iterate
from .norms import Entrywise
from .problem import Problem, prepare
from .root_problem import RootProblem
from .rules.newton import NewtonKrylov
from .settings import Settings, SolveOptions, takes_settings
from .solution import Solution
from .state import S

P = ParamSpec("P")
R = TypeVar("R")


_OPEN_ENDED = (
    "the number of steps of a solve depends on its data, so no single graph can hold it: drop fullgraph=True, or use "
    "the layer's form with a fixed number of steps, layer.exported(*inputs)"
)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Run the function uncompiled, between the graphs of a compiled caller: a solve's length depends on its data."""
    apart: Any = _disable_dynamo(function)  # imports the compiler at its first call, which takes seconds
    apart._torchdynamo_disable, apart._torchdynamo_disable_msg = True, f"{function.__qualname__}: {_OPEN_ENDED}"

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = (apart if torch.compiler.is_compiling() else function)(*args, **kwargs)
        return result

    return call


@takes_settings()
@uncompiled
def solve(f: Callable[..., S], z0: S, args: tuple[Any, ...] = (), **options: Unpack[SolveOptions]) -> Solution[S]:
    """Find `z* = f(z*, *args)` for every row of a batch, each on its own.

    A row has converged when `‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖`, unless it meets this only because ‖z‖ grew. If a row
    cannot converge, its status says so, and no error is raised. No gradient is recorded: use `implicit.fixed_point`
    for that.

    Args:
        f: maps a state to a state of the same shapes and dtype; must not write into its arguments.
        z0: first iterate: a tensor, or nested (named) tuples, lists and dicts of tensors, (batch, …) with at least one
            more dim.
        args: further arguments of `f`, which may be nested in the same way.
        **options: those of `Settings`.

    Raises:
        TypeError, ValueError: an argument, or the output of `f` or of a solver's `step`, does not have the form above.
    """
    settings = Settings.of("solve", options)
    return solve_prepared(prepare(f, z0, args, recordable=True), z0, settings)


@takes_settings(solver=NewtonKrylov(), rtol=1e-6)
@uncompiled
def root(F: Callable[..., S], z0: S, args: tuple[Any, ...] = (), **options: Unpack[SolveOptions]) -> Solution[S]:
    """Find `F(z*, *args) = 0` for every row of a batch, each on its own.

    A row has converged when `‖F(z)‖ ≤ atol + rtol·‖F(z0)‖`: scaling F does not change the answer while `‖F(z0)‖` is far
    above atol, 1e-10 by default. If F is smaller, scale it or pass atol=0.0, which fails if the start is already a root
    up to rounding. The solution's residuals are those of F, relative to `‖F(z0)‖`. Any solver works: it is applied to
    `z − F(z)`. Solvers other than `NewtonKrylov` need F scaled such that this map is nearly a contraction. If rows
    depend on each other, all have the tolerance of the one with the largest `‖F(z0)‖`.

    Args:
        F: maps a state to a state of the same shapes and dtype; must not write into its arguments.
        z0: the start, as in `solve`.
        args: further arguments of `F`.
        **options: those of `Settings`, with the defaults solver=NewtonKrylov(), rtol=1e-6.

    Raises:
        TypeError, ValueError: as in `solve`.
    """
    settings = root_settings("root", options)
    return solve_prepared(prepare(F, z0, args, RootProblem, recordable=True), z0, settings)


def root_settings(title: str, options: SolveOptions) -> Settings:
    """The settings of a root problem."""
    settings = Settings.of(title, options, solver=NewtonKrylov(), rtol=1e-6)
    if isinstance(settings.norm, Entrywise):
        raise ValueError(
            f"{title}: norm=Entrywise() compares with f(z), which a root problem does not have: pass norm=Euclidean()"
        )
    return settings


def solve_prepared(problem: Problem, z0: S, settings: Settings) -> Solution[S]:
    """`solve`, for a problem that has been checked."""
    with torch.no_grad():
        outcome = iterate(problem, problem.layout.flatten(z0), settings)
        return outcome.solution(problem, settings.solver)
