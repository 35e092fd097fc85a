"""What a gradient policy must keep to: the checks of what it returns and reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from solvers import Solution

from ..reports import Reports
from .base import Evaluation, Gradient, Map, Report

if TYPE_CHECKING:
    from .adjoint import AdjointGradient


def attached(policy: Gradient, at: Evaluation) -> Tensor:
    """The solution with the graph that the policy's `attach` gives it."""
    value: Any = policy.attach(at)
    if not _alike(value, at.point):
        raise TypeError(
            f"{type(policy).__name__}.attach returned {_kind(value)}: return a tensor equal to `at.point`, of "
            f"{_form(at.point)}"
        )
    found: Tensor = value
    return found


def checked_linear(policy: AdjointGradient, product: Map, shift: Tensor, report: Report, inverse: Map | None) -> Tensor:
    """What the policy's `linear` returns."""
    name, version = f"{type(policy).__name__}.linear", _version(shift)
    u: Any = policy.linear(product, shift, report, inverse)
    if not _alike(u, shift):
        raise TypeError(f"{name} returned {_kind(u)}: return u, a tensor like `shift`, of {_form(shift)}")
    if _version(shift) != version:
        raise ValueError(f"{name} changed `shift` in place, on which `u = product(u) + shift` depends: clone it first")
    found: Tensor = u
    return found


def report_of(reports: Reports, policy: Gradient) -> Report:
    """What the policy calls after a backward solve."""
    reports = reports._replace(settings=policy.whose_settings)

    def report(converged: bool, make_solution: Callable[[], Solution]) -> None:
        name = f"report(converged, make_solution) of {type(policy).__name__}"
        if not isinstance(converged, (bool, np.bool_)):
            kind = type(converged).__name__
            raise TypeError(f"{name}: converged is a {kind}: pass one bool, such as bool(solution.converged.all())")
        if not callable(make_solution):
            kind = type(make_solution).__name__
            raise TypeError(f"{name}: make_solution is a {kind}: pass a function, such as lambda: solution")
        reports.enter("backward", bool(converged), make_solution)

    return report


def _alike(value: Any, like: Tensor) -> bool:
    return isinstance(value, Tensor) and (value.shape, value.dtype) == (like.shape, like.dtype)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {_form(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _form(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, {tensor.dtype}"


def _version(tensor: Tensor) -> int | None:
    """How often the tensor has been written to, where that is counted."""
    return None if tensor.is_inference() else tensor._version
