"""How to solve: the keyword arguments of `solve`, `root`, and everything that passes them on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral, Real
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor

from .loops.eager import Eager, Loop
from .norms import Entrywise, Euclidean, Measure, Norm
from .rules.anderson import Anderson
from .rules.rule import Solver

F = TypeVar("F", bound=Callable[..., Any])


class SolveOptions(TypedDict, total=False):
    """The types of the keyword arguments; `Settings` documents their meaning."""

    solver: Solver
    rtol: float
    atol: float | None
    min_steps: int
    max_steps: int | Tensor
    norm: Norm
    compact: bool | None
    loop: Loop


@dataclass(frozen=True, eq=False)
class Settings:
    """The keyword arguments, checked."""

    solver: Solver = Anderson()
    """The rule that proposes iterates."""
    rtol: float = 1e-4
    """Tolerance relative to `‖f(z)‖`, in `root` relative to `‖F(z0)‖`; at least 0."""
    atol: float | None = None
    """Absolute tolerance, at least 0; None: 1e-4·rtol."""
    min_steps: int = 0
    """Steps that are taken whatever the residual."""
    max_steps: int | Tensor = 100
    """The budget. A step costs one evaluation of f (with `NewtonKrylov`, at most inner_steps + 2), and no row costs
    more than max_steps steps and one evaluation. A (batch,) tensor of integers gives each row its own."""
    norm: Norm = Euclidean()
    """What must be small: the residual of a row, or, with `Entrywise()`, of each of its entries."""
    compact: bool | None = None
    """Drop rows that have stopped from further evaluations: from z, and from every tensor in args with the batch in
    dim 0 (wrap one that all rows share in `Shared`). This pays if rows need very different numbers of steps and f is
    costly. If f fails for fewer rows, or couples them, the whole batch is solved, with a `RuntimeWarning`. None: True
    in an `Equilibrium` with the `Eager` loop, else False."""
    loop: Loop = Eager()
    """How the steps are run."""

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise TypeError(
                f"solver={self.solver!r} is not a Solver: pass an object such as Anderson() or Picard(damping=0.5)"
            )
        if not isinstance(self.norm, Norm):
            raise TypeError(f"norm={self.norm!r} is not a Norm: pass Euclidean() or Entrywise()")
        if not isinstance(self.loop, Loop):
            raise TypeError(f"loop={self.loop!r} is not a Loop: pass Eager(), Compiled() or Captured()")
        for name, value in (("rtol", self.rtol), ("atol", 0.0 if self.atol is None else self.atol)):
            if not isinstance(value, Real) or isinstance(value, bool):
                raise ValueError(f"{name}={value!r} is a {type(value).__name__}: pass a number, such as 1e-4")
            if not 0 <= float(value) < math.inf:
                raise ValueError(f"{name}={value!r} must be a finite number of at least 0")
        if not isinstance(self.min_steps, Integral) or isinstance(self.min_steps, bool) or self.min_steps < 0:
            raise ValueError(f"min_steps={self.min_steps!r} must be an integer of at least 0")
        if not self._steps_fit():
            raise ValueError(
                f"max_steps={self.max_steps!r} must be an integer of at least 1, or a (batch,) tensor of such integers"
            )
        if self.min_steps > self.most > 0:
            raise ValueError(f"min_steps={self.min_steps} exceeds max_steps={self.most}: no row could converge")
        if self.compact not in (None, True, False) or (
            isinstance(self.compact, int) and self.compact is not bool(self.compact)
        ):
            raise TypeError(f"compact={self.compact!r} must be True, False or None")
        if self.loop.fixed_shapes and self.compact:
            raise ValueError(f"loop={self.loop!r} needs fixed shapes, but compact=True drops rows: pass compact=False")
        if self.loop.fixed_shapes and not self.solver.fixed_cost:
            raise ValueError(
                f"loop={self.loop!r} needs a solver with a fixed cost per step, which {type(self.solver).__name__} "
                "does not have: use a solver such as Anderson, Broyden, GMRES or Picard"
            )
        if self.loop.fixed_shapes and type(self.solver).__hash__ is None:
            raise TypeError(
                f"loop={self.loop!r} keeps recordings by solver, but a {type(self.solver).__name__} has no hash: make "
                "it a dataclass(frozen=True)"
            )

    def _steps_fit(self) -> bool:
        steps = self.max_steps
        if isinstance(steps, Tensor):
            whole = not (steps.is_floating_point() or steps.is_complex() or steps.dtype == torch.bool)
            return steps.ndim == 1 and whole and bool((steps >= 1).all())
        return isinstance(steps, Integral) and not isinstance(steps, bool) and steps >= 1

    @classmethod
    def of(cls, title: str, options: Mapping[str, Any], **defaults: Any) -> Settings:
        """The settings from the keyword arguments of the function `title`, with that function's own defaults."""
        known = [field.name for field in fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            name, solver = unknown[0], options.get("solver", defaults.get("solver", Anderson()))
            own: list[str] = []
            if isinstance(solver, Solver) and is_dataclass(solver):
                own = [field.name for field in fields(solver)]
            hint = f". It may belong to the solver: solver={type(solver).__name__}({name}=…)" if name in own else ""
            raise TypeError(f"{title}() got an unexpected keyword argument {name!r}: it takes {', '.join(known)}{hint}")
        return cls(**{**defaults, **options})

    @property
    def most(self) -> int:
        """The largest number of steps of any row."""
        return max(self.max_steps.tolist(), default=0) if isinstance(self.max_steps, Tensor) else int(self.max_steps)

    @property
    def absolute_tolerance(self) -> float:
        """The absolute tolerance, with its default if `atol` is None."""
        return 1e-4 * self.rtol if self.atol is None else self.atol

    @property
    def measure(self) -> Measure:
        """The norm with its tolerances."""
        return Measure(self.norm, float(self.rtol), float(self.absolute_tolerance))

    def options(self) -> SolveOptions:
        """These settings as keyword arguments."""
        return SolveOptions(**{field.name: getattr(self, field.name) for field in fields(self)})  # type: ignore[typeddict-item]


def takes_settings(**defaults: Any) -> Callable[[F], F]:
    """Show the settings in a function's signature in place of `**options`, with the function's own defaults."""

    def shown(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        settings = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(field.name, field.default),
                annotation=field.type,
            )
            for field in fields(Settings)
        ]
        function.__signature__ = signature.replace(parameters=[*own, *settings])  # type: ignore[attr-defined]
        return function

    return shown


__all__ = ["Entrywise", "Euclidean", "Settings", "SolveOptions", "takes_settings"]
