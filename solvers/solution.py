"""The result of a solve, with a value, a residual and a status for each row, and the outcome of the loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .pages import sparkline, table
from .state import S
from .status import COUPLED, Status, at_floor
from .trace import until_stopped

if TYPE_CHECKING:
    from .norms import Measure
    from .problem import Problem
    from .rows import Bools, Floats, Rows, Rule
    from .rules.rule import Solver


class ConvergenceError(RuntimeError):
    """Raised by `Solution.check` when a row did not converge."""


@dataclass(frozen=True)
class Solution(Generic[S]):
    """The result of `solve`, row by row.

    A converged row holds the iterate that met the test; any other row its best iterate by absolute residual.
    """

    value: S = field(repr=False)
    """Like `z0`: the solution of each row."""
    residual: Tensor = field(repr=False)
    """(batch,) relative residual `‖f(z) − z‖ / ‖f(z)‖` of exactly that value; for `root`, `‖F(z)‖ / ‖F(z0)‖`."""
    status: Tensor = field(repr=False)
    """(batch,) int64, each a `Status`."""
    steps: Tensor = field(repr=False)
    """(batch,) steps until the row stopped; a step evaluates `f` at one iterate, `z0` being the first."""
    evaluations: Tensor = field(repr=False)
    """(batch,) evaluations of `f` spent on the row until it stopped."""
    trace: Tensor = field(repr=False)
    """(steps, batch) relative residual of the k-th iterate, `z0` first; NaN once a row has stopped."""
    absolute: Tensor = field(repr=False)
    """(steps, batch) absolute residual `‖f(z) − z‖`, from which rates are measured."""
    alternatives: str = field(default="another solver", repr=False, kw_only=True)
    """What to try where rows fail, depending on the solver that ran."""
    budget: str = field(default="max_steps", repr=False, kw_only=True)
    """The argument to raise where the steps ran out."""
    fixed: bool = field(default=False, repr=False, kw_only=True)
    """Whether the number of steps was fixed, without a tolerance, so that no row converged or failed to."""
    rounding: float = field(default=0.0, repr=False, kw_only=True)
    """Relative rounding unit of f's output; 0: unknown."""
    floored: Tensor = field(repr=False, kw_only=True)
    """(batch,) bool: the row missed its tolerance at a residual that is as small as the dtype allows."""
    linear: bool = field(default=False, repr=False, kw_only=True)
    """Whether the equation is the linear one of a backward pass."""
    coupled: bool = field(default=False, repr=False, kw_only=True)
    """Whether rows that failed were found to depend on each other once all had stopped."""

    @property
    def converged(self) -> Tensor:
        """(batch,) bool: the row met its tolerance."""
        return self.status == Status.CONVERGED

    def check(self) -> Solution[S]:
        """Return self, or raise `ConvergenceError` naming how many rows failed, which, why, and what to try."""
        if not bool(self.converged.all()):
            raise ConvergenceError(self.summary())
        return self

    def summary(self) -> str:
        """One line for each status that occurs: how many rows, which ones, how far off, and the remedy."""
        statuses, floored = self.status.tolist(), self.floored
        floor = self.residual[floored].max().item() if bool(floored.any()) else 0.0
        failed = Counter(statuses)
        converged = failed.pop(Status.CONVERGED, 0)
        lines = [f"{converged} of {len(statuses)} rows converged"]
        for code, count in sorted(failed.items()):
            rows = [row for row, status in enumerate(statuses) if status == code]
            shown = ", ".join(map(str, rows[:5])) + (", …" if count > 5 else "")
            worst = self.residual[torch.tensor(rows, device=self.residual.device)].max().item()
            status = Status(code)
            lines.append(
                f"{count} {status.name} ({'row' if count == 1 else 'rows'} {shown}; "
                f"largest relative residual {worst:.1e}): "
                + (at_floor(floor, self.rounding) if bool(floored[rows].all()) else self._advice(status))
            )
        return "\n".join(lines)

    def _advice(self, status: Status) -> str:
        if self.fixed and status == Status.MAX_STEPS:
            return "the number of steps was fixed, without a tolerance"
        if self.coupled:
            return COUPLED
        message = status.message_of_backward if self.linear else status.message
        return message.replace("another solver", self.alternatives).replace("max_steps", self.budget)

    def to_dict(self) -> dict[str, list[Any]]:
        """What happened to each row, in plain numbers and words, without the value and the trace.

        `pandas.DataFrame(solution.to_dict())` has one line per row.
        """
        return {
            "status": [Status(code).name for code in self.status.tolist()],
            "residual": self.residual.tolist(),
            "steps": self.steps.tolist(),
            "evaluations": self.evaluations.tolist(),
        }

    def _repr_html_(self) -> str:
        codes = self.status.tolist()
        lines = []
        for code, count in sorted(Counter(codes).items()):
            chosen = self.status == code
            steps, residual = self.steps[chosen], self.residual[chosen].max().item()
            label = Status(code).name
            lines.append([label, str(count), f"{int(steps.min())} to {int(steps.max())}", f"{residual:.1e}"])
        return table(["status", "rows", "steps", "largest relative residual"], lines) + self.curve()

    def curve(self) -> str:
        """An SVG line of the median residual, for a page; empty for fewer than two steps.

        A row that has stopped keeps counting with its last residual, so the line does not jump.
        """
        trace = self.trace.double().cpu().clone()
        for step in range(1, len(trace)):
            trace[step] = torch.where(trace[step].isnan(), trace[step - 1], trace[step])
        medians = trace.nanmedian(dim=1).values if trace.numel() else trace.flatten()
        return sparkline(medians, "median relative residual (logarithmic; rows that have stopped keep their last)")

    def __repr__(self) -> str:
        statuses = Counter(self.status.tolist())
        counts = ", ".join(f"{count} {Status(code).name}" for code, count in sorted(statuses.items()))
        if not statuses:
            return "Solution(0 rows)"
        rows, (least, most) = len(self.status), self.steps.aminmax()
        steps = f"steps {int(least)} to {int(most)}" if least < most else f"steps {int(most)}"
        return (
            f"Solution({rows} row{'s' if rows > 1 else ''}: {counts}; {steps}, "
            f"largest relative residual {self.residual.max().item():.1e})"
        )


class History(NamedTuple):
    """The solver's memory of some rows, and the point they had reached, when they stopped."""

    rows: Tensor  # their positions in the batch
    step: int  # the step at which this was recorded: their last, or shortly after
    point: Tensor  # (rows, dim): where f was evaluated in that step
    memory: Any


@dataclass(frozen=True)
class Outcome:
    """The outcome of the loop."""

    value: Tensor
    """(batch, dim)."""
    rows: Rows
    norms: Floats
    """(2·steps, batch): ‖f(z) − z‖ and ‖f(z)‖ of each step; arbitrary once a row has stopped."""
    rule: Rule
    dropped: bool
    histories: list[History] = field(default_factory=list)
    iterates: list[Tensor] = field(default_factory=list)
    """(batch, dim) each, as `Keep` requested; rows that had stopped before hold their solution."""
    joint: bool = False
    """Whether rows turned out to depend on each other, and were solved as one."""

    @property
    def converged(self) -> bool:
        """Whether all rows converged."""
        return not self.rows.status.any()

    def solution(self, problem: Problem, solver: Solver) -> Solution[Any]:
        """The `Solution`, on the state's device; it shares no memory with what the caller passed."""
        rows, norms = self.rows, until_stopped(self.norms, self.rows)
        absolute, scales = norms[::2], norms[1::2]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            relative = _relative(rows.best, self.rule.reference(rows, rows.best_scale))
            trace = _relative(absolute, self.rule.reference(rows, scales))
        floats, whole = (
            torch.from_numpy(array).to(problem.layout.device, non_blocking=True)  # does not wait for earlier launches
            for array in (
                np.concatenate((relative[None], trace, absolute)),
                np.array((rows.status, rows.steps, rows.steps + rows.spent, self._floored(problem))),
            )
        )
        status, steps, evaluations, floored = whole.unbind()
        residual, trace, absolute = floats.split((1, len(trace), len(trace)))
        return Solution(
            problem.layout.unflatten(self.value.clone()),
            residual[0],
            status,
            steps,
            evaluations,
            trace,
            absolute,
            alternatives=solver.alternatives,
            budget=solver.budget,
            rounding=self.rule.rounding,
            floored=floored.bool(),
        )

    def couples(self, problem: Problem, measure: Measure) -> bool:
        """Whether rows, evaluated together once more, no longer have the residuals at which they failed."""
        if self.joint or self.converged:
            return False
        value = self.value.to(problem.layout.working_dtype)
        image, residual = problem.evaluate(value, value)
        return not self.rule.holds(self.rows, *measure.on_host(residual, image)).all()

    def _floored(self, problem: Problem) -> Bools:
        """Rows with as small a residual as the dtype allows, which their tolerance does not."""
        rule, rows = self.rule, self.rows
        units = _UNITS[rows.status]
        if not problem.subtracts or not units.any():
            return np.zeros(len(rows.status), dtype=bool)
        above = rows.best > rule.tolerance(rule.reference(rows, rows.best_scale))
        with np.errstate(invalid="ignore"):
            floor = units * rule.rounding * rows.best_scale
            return (rows.best <= floor) & above & rule.genuine(rows, 2, rows.best, rows.best_scale)


_UNITS = np.array([status.units for status in Status])


def _relative(residual: Floats, reference: Floats) -> Floats:
    return np.where(residual == 0, 0.0, residual / reference)
