"""A stretch of steps without a look from the host: what `torch.compile` turns into one graph."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .norms import extreme, out_of_range, row_norms
from .problem import Problem, select
from .rows import Floats
from .solver import RestartingSolver, Solver

SMALL = 2**13
"""Entries of a state up to which copying it costs less than calling one more operation."""
_IN_PLACE = (
    "f writes into its argument, or into what it returned before: return a fresh tensor (no in-place operations on z; "
    "clone a static output)"
)


class Stretch(NamedTuple):
    """What some steps leave: the points at which `f` was evaluated, the norms there, and where the next step starts."""

    points: list[Tensor]
    norms: Tensor  # (2·points, rows): ‖f(z) − z‖ and ‖f(z)‖ of each
    image: Tensor  # of the last point
    residual: Tensor  # likewise
    memory: Any

    def first(self, count: int) -> Stretch:
        """Without the points after so many; it then serves to read them, no longer to go on."""
        if len(self.points) <= count:
            return self
        return self._replace(points=self.points[:count], norms=self.norms[: 2 * count])

    def take(self, rows: Tensor) -> Stretch:
        """The last point of the rows at these positions."""
        last = [self.points[-1].index_select(0, rows)]
        return Stretch(last, self.norms, *select((self.image, self.residual, self.memory), rows))

    def repaired(self, found: Tensor) -> tuple[Floats, Floats | None]:
        """Its norms, `found` on the host, anew where squares have left the range of the dtype; then ‖z‖ as well."""
        norms = found.double().numpy()
        if not extreme(norms, self.residual.dtype):
            return norms, None
        if len(self.points) == 1:
            exact = np.stack((row_norms(self.residual), row_norms(self.image)))
            norms = np.where(out_of_range(norms, self.residual.dtype), exact, norms)
        return norms, np.stack([row_norms(point) for point in self.points])


def begin(problem: Problem, solver: Solver, z: Tensor, image: Tensor | None) -> Stretch:
    """The first evaluation, unless its result is known; of a copy, since z may be the caller's."""
    if image is None:
        probe = z.clone()
        image = _evaluate(problem, probe, probe)
        if probe.is_inference() and not torch.equal(probe.nan_to_num(), z.nan_to_num()):
            raise ValueError(_IN_PLACE)
    residual = image - z
    return Stretch([z], _norm(torch.stack((residual, image)), 1), image, residual, solver.init(z))


def advance(
    problem: Problem,
    solver: Solver,
    start: Stretch,
    steps: int,
    hold: tuple[Tensor, Tensor] | None,
    forget: Tensor | None,
) -> Stretch:
    """`steps` times a step of the solver and an evaluation.

    Args:
        hold: rows, (rows,) bool, that do not move, and the values of all rows at which they are held.
        forget: rows, (rows,) bool, whose history is dropped in the first step.
    """
    points, vectors = [], []
    small = start.image.numel() <= SMALL
    z, image, residual, memory = start.points[-1], start.image, start.residual, start.memory
    for count in range(steps):
        proposal, memory = solver.step(memory, z, image, residual)
        if count == 0 and forget is not None and isinstance(solver, RestartingSolver):
            memory = solver.restart(memory, forget)
            proposal = torch.where(forget[:, None], image, proposal)
        if hold is not None:
            proposal = torch.where(hold[0][:, None], hold[1], proposal)
        z = problem.layout.representable(proposal)
        image = _evaluate(problem, z, image)
        residual = image - z
        points.append(z)
        vectors += [residual, image] if small else [_norm(residual, steps), _norm(image, steps)]
    norms = torch.stack(vectors)
    return Stretch(points, _norm(norms, steps) if small else norms, image, residual, memory)


def _norm(x: Tensor, steps: int) -> Tensor:
    """Over the last dim. Squares stay in range; a stretch of one step saves that and leaves the repair to the loop."""
    if steps == 1:
        return torch.linalg.vector_norm(x, dim=-1)
    if x.dtype == torch.float32:
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return torch.linalg.vector_norm(x / largest, dim=-1) * largest.squeeze(-1)


def _evaluate(problem: Problem, z: Tensor, last: Tensor) -> Tensor:
    """`f(z)`; refused where f overwrites what it was given or returned before, for iterates are kept by reference."""
    if torch.compiler.is_compiling():
        return problem(z)
    if z.is_inference() or last.is_inference():  # these carry no version
        return problem(z)
    before = z._version, last._version
    image = problem(z)
    if (z._version, last._version) != before:
        raise ValueError(_IN_PLACE)
    return image
