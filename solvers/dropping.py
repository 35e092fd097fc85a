"""Rows that have stopped are dropped where f can follow: the check, and what is said where it cannot."""

from __future__ import annotations

import warnings

from .loops.eager import Stretch
from .norms import Measure, row_norms
from .problem import DroppedRowsError, Problem

NEGLIGIBLE, ALIKE = 0.1, 100
"""Share of a row's tolerance, and rounding units of its image, by which that may change when others are dropped."""


def can_follow(fewer: Problem, stretch: Stretch, measure: Measure) -> bool:
    """Whether f without the rows that have stopped says the same of the others; costs one evaluation of these.

    Args:
        fewer: the problem of the rows that are left.
        stretch: where they are, and their images when all rows were evaluated.
        measure: tells their tolerances.
    """
    try:
        image, _ = fewer.evaluate(stretch.points[-1], stretch.image)
    except DroppedRowsError as error:
        warn_of_dropping(f"f failed without them: {error}")
        return False
    change, scale = row_norms(image - stretch.image), row_norms(stretch.image)
    allowed = NEGLIGIBLE * (measure.atol + measure.rtol * scale)
    if (change <= allowed + ALIKE * fewer.rounding * scale).all():
        return True
    warn_of_dropping("f returned something else for the others without them")
    return False


def warn_of_dropping(what: str) -> None:
    warnings.warn(
        f"rows that had stopped were dropped, and {what}. The whole batch is solved instead. f couples the rows (batch "
        "statistics, attention across the batch), is not deterministic, uses a tensor of the batch's size that is not "
        "in args, or shares one in args among the rows whose length is that of the batch. Pass compact=False; "
        "replace BatchNorm by GroupNorm or LayerNorm; pass tensors through args, shared ones as solvers.Shared("
        "tensor); make a graph, whose nodes are not rows, one row: z0[None]",
        RuntimeWarning,
        stacklevel=6,
    )
