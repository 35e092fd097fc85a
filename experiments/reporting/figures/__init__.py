"""The figures of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .answers import boundaries, functions
from .branches import kept_branches
from .repeated import more_steps
from .restorations import distances, restorations
from .scores import cost, differences
from .solves import evaluations, residuals, spectra, steps
from .style import literal, styled
from .training import training_curves
from .words import in_words

if TYPE_CHECKING:
    from ..comparison import Comparison

FIGURES: dict[str, tuple[str, Callable[[Comparison], Any]]] = {
    "differences": (
        "Scores minus the baseline's, paired by seed: an interval that crosses the line decides nothing.",
        differences,
    ),
    "cost": (
        "The score against what it costs: the best are in the upper left, for errors in the lower left. A cost that "
        "hardly differs has no panel.",
        cost,
    ),
    "training": (
        "Score and loss over training, mean over the seeds: the baseline, and the networks that you pick.",
        training_curves,
    ),
    "boundaries": ("What the networks answer in the plane; black: the decision boundary (first seed).", boundaries),
    "functions": ("The target and the networks' approximations (first seed).", functions),
    "restorations": ("Test crops and their restorations, with their PSNR (first seed).", restorations),
    "distances": ("Before training: the networks against the optimum of the classical problem.", distances),
    "residuals": ("Convergence of the solves on the test part, after training (first seed).", residuals),
    "steps": ("After how many steps the rows of the test part had stopped, after training (first seed).", steps),
    "eigenvalues": (
        "The largest eigenvalues of the cells' Jacobians at the solutions of some test rows, after training (first "
        "seed): where all lie within the circle, plain iteration converges near those solutions.",
        spectra,
    ),
    "evaluations": ("Evaluations of the cells over training.", evaluations),
    "more-steps": ("The score after fewer and more steps of a repeated cell than in training.", more_steps),
    "branches": ("What the branches of a Para-Former add, after training.", kept_branches),
}
"""File name → (caption, function that draws the figure, or returns None if there is nothing to show)."""

__all__ = ["FIGURES", "in_words", "literal", "styled"]
