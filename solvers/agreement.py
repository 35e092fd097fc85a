"""Whether what was found row by row holds for the whole batch."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .criterion import SLACK
from .iteration import Outcome
from .norms import row_norms
from .problem import Settings
from .rows import Bools
from .solution import Status

ROUNDINGS = 4
"""Rounding units of the image by which evaluations in batches of different sizes may differ."""


def agrees(outcome: Outcome, image: Tensor, rounding: float, settings: Settings) -> bool:
    """Whether the rows solved in a shrinking batch hold in the full one, where their value has this image."""
    return bool(holding(outcome, image, rounding, settings).all())


def holding(outcome: Outcome, image: Tensor, rounding: float, settings: Settings) -> Bools:
    """The rows whose residual, by this image of their values, is what the books say."""
    books, scale = outcome.books, row_norms(image)
    booked = np.where(books.status == Status.CONVERGED, settings.rtol * scale + settings.atol, books.best)
    with np.errstate(invalid="ignore"):
        holds = row_norms(image - outcome.value) <= SLACK * booked + ROUNDINGS * rounding * scale
    return np.asarray(holds | (books.status == Status.NON_FINITE))
