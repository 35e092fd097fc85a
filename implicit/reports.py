"""Reports of solves: in logs, and in a warning if rows did not converge."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import CellType
from typing import Any, Literal, NamedTuple

from torch import nn

from solvers import Solution
from solvers.caller import level_of_caller
from solvers.settings import Settings

from .logs import ConvergenceWarning, LayerName, Log, Record


class Reports(NamedTuple):
    """Where the solves of one call of a layer, or of `fixed_point`, are reported."""

    logs: tuple[Log, ...]
    """The logs that were open in the forward pass."""
    name: str
    """The `layer_name` of a layer, or the function's name."""
    owner: Any
    """The layer, or the function."""
    settings: str = ""
    """Where to find the settings that a warning names, if they are not the layer's."""
    told: bool = False
    """Whether the user has been warned of something in f that may be the cause."""
    tried: Settings | None = None
    """How the forward pass solves; these settings and the next are what a user may change where rows fail."""
    gradient: object = None
    """How the backward pass does."""

    def enter(
        self,
        direction: Literal["forward", "backward"],
        converged: bool,
        found: Callable[[], Solution],
        radius: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Enter a solve in the logs, and warn if rows did not converge, unless that has been reported before.

        Args:
            direction: of the solve.
            converged: whether all rows converged.
            found: makes the solution, which costs transfers to the device.
            radius: measures the spectral radius of the Jacobian, where that is cheap.
        """
        if converged and not self.logs:
            return
        solution = found()
        if not isinstance(solution, Solution):
            raise TypeError(
                f"{self.name}, {direction} solve: make_solution() returned a {type(solution).__name__}: return a "
                "solvers.Solution; a policy that makes none, such as a truncated series, does not call report"
            )
        for log in self.logs:
            kept = solution if log.values else replace(solution, value=())
            called = self.name.within(log) if isinstance(self.name, LayerName) else self.name
            (log.forward if direction == "forward" else log.backward).append(Record(called, kept))
        if converged or _ignored() or not self._is_news(direction, solution):
            return
        text = f"{self.name}, {direction} solve: "
        if self.told:
            text += f"{solution.summary().splitlines()[0]}; see to the earlier warning about f first"
        else:
            text += solution.summary()
        if bool(solution.converged.all()):
            text += "; its policy reports that it did not converge"
        if self.settings and not self.told:
            text += f"\n{self.settings}"
        floored = solution.floored
        measured = None if bool(floored.any() & (solution.converged | floored).all()) else radius()
        if measured is not None:
            text += f"\nThe spectral radius of the Jacobian there is about {measured:.3g}"
            text += (
                ": too close to 1 to say whether plain steps converge"
                if abs(measured - 1) < NEAR
                else ": plain iteration diverges; make the cell contract more, by smaller weights or jacobian_penalty"
                if measured > 1
                else f": plain steps converge from nearby; a larger {solution.budget} may suffice"
            )
        if isinstance(self.name, LayerName):
            text += "\nimplicit.diagnostics.diagnose looks for the cause."
        under = "" if self._times(direction) >= TRIALS else "under other settings or "
        text += (
            f"\nThis warning is repeated only {under}if the residual becomes ten times larger; "
            "implicit.record() records every solve"
        )
        warnings.warn(text, ConvergenceWarning, stacklevel=level_of_caller())

    def _is_news(self, direction: str, solution: Solution) -> bool:
        told = _told.setdefault(_lasting(self.owner), {}).setdefault(direction, {})
        tried, most = _named(self.gradient) if direction == "backward" else "", 0
        if self.tried is not None:
            named, most = (_named(self.tried.solver), _named(self.tried.norm)), self.tried.most
            tried += f"{named} {self.tried.rtol} {self.tried.absolute_tolerance}"
        residuals = solution.residual[~solution.converged]
        residuals = residuals if residuals.numel() else solution.residual
        residual = math.inf if bool(residuals.isnan().any()) else float(residuals.max())
        before = told.get(tried, _Told())
        is_trial = self._times(direction) < TRIALS and most > before.budget  # otherwise they follow a schedule
        worst = before.residual if tried in told else max(each.residual for each in told.values()) if told else 0.0
        if not (is_trial or (residual >= WORSE * worst and residual > worst)):
            return False
        told[tried] = _Told(max(before.residual, residual), max(before.budget, most), before.times + 1)
        return True

    def _times(self, direction: str) -> int:
        return sum(each.times for each in _told.get(_lasting(self.owner), {}).get(direction, {}).values())


class _Told(NamedTuple):
    """What the warnings of a cell reported, under some settings."""

    residual: float = 0.0
    """The largest."""
    budget: int = -1
    """The largest."""
    times: int = 0


_told: weakref.WeakKeyDictionary[Any, dict[str, dict[str, _Told]]] = weakref.WeakKeyDictionary()
"""For each cell, or function's code, direction and settings: what warnings reported."""
NEAR = 0.02
"""Distance of an estimated spectral radius from 1 within which nothing follows from it."""
TRIALS = 8
"""Number of warnings of a cell after which other settings are no news: they follow a schedule."""
WORSE = 10.0
"""Factor by which a residual must exceed that to be reported again."""


def _ignored() -> bool:
    """Whether the caller ignores this warning: one that is not shown does not count as reported."""
    for action, message, category, module, _ in warnings.filters:
        if issubclass(ConvergenceWarning, category) and message is None and module is None:
            return action == "ignore"
    return False


def _named(value: object) -> str:
    """What is the same for objects that are made anew for each call."""
    return type(value).__name__ if type(value).__repr__ is object.__repr__ else repr(value)


def _lasting(owner: Any) -> Any:
    """What stays the same when a function is defined anew by the same code: a module that it holds, else its code."""
    if isinstance(owner, partial):
        held = owner.args
    else:
        held = (
            getattr(owner, "__self__", None),
            *map(_contents, getattr(owner, "__closure__", None) or ()),
        )
    for value in held:
        if isinstance(value, nn.Module):
            return value
    if isinstance(owner, partial):
        return _lasting(owner.func)
    if isinstance(owner, nn.Module):
        return owner
    code = getattr(owner, "__code__", None) or getattr(type(owner).__call__, "__code__", None)
    return code or (owner if type(owner).__weakrefoffset__ else type(owner))


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the variable has not been assigned yet
        return None
