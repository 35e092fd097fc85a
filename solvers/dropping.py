"""Dropping rows that have stopped: the check that f works without them, and the warning if it does not."""

from __future__ import annotations

import warnings

import numpy as np

from .caller import level_of_caller
from .loops.eager import Stretch
from .norms import Measure, row_norms
from .problem import DroppedRowsError, Problem

NEGLIGIBLE, ALIKE = 0.1, 100
"""Share of a row's tolerance, and rounding units of its image, by which the image may change when rows are dropped."""


def can_follow(fewer: Problem, stretch: Stretch, measure: Measure) -> bool:
    """Whether f returns the same images for the remaining rows alone; costs one evaluation of these rows.

    Args:
        fewer: the problem of the remaining rows.
        stretch: their point, and their images from the evaluation of all rows.
        measure: the norm with the tolerances.
    """
    try:
        image, _ = fewer.evaluate(stretch.points[-1], stretch.image)
    except DroppedRowsError as error:
        warn_of_dropping(fewer, f"f failed without them: {error}")
        return False
    change, scale = row_norms(image - stretch.image), row_norms(stretch.image)
    allowed = NEGLIGIBLE * (measure.atol + measure.rtol * scale)
    # the solver may have leapt to where a row of f is not finite
    still = ~np.isfinite(scale) & ~np.isfinite(row_norms(image))
    if ((change <= allowed + ALIKE * fewer.rounding * scale) | still).all():
        return True
    warn_of_dropping(fewer, "f then returned other values for the remaining rows")
    return False


def warn_of_dropping(problem: Problem, what: str) -> None:
    if problem.told:
        return
    problem.told = True
    warnings.warn(
        f"rows that had stopped were dropped, and {what}. The whole batch is solved instead. f couples the rows (batch "
        "statistics, attention across the batch), is not deterministic, uses a tensor of the batch's size that is not "
        "in args, or shares among the rows a tensor in args whose length is the batch size. Pass compact=False, or "
        "remove the cause: replace BatchNorm by GroupNorm or LayerNorm; pass tensors through args, shared ones as "
        "solvers.Shared(tensor); pass a graph, whose nodes are not rows, as one row, z0[None]",
        RuntimeWarning,
        stacklevel=level_of_caller(),
    )
