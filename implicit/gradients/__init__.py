"""Gradient policies: how to differentiate through an equilibrium."""

from .adjoint import AdjointGradient
from .base import Evaluation, Gradient, with_value
from .exact import ImplicitGradient, Unconverged
from .inexact import NeumannGradient, ShineGradient
from .phantom import PhantomGradient
from .reversible import ReversibleGradient
from .splitting import SplittingGradient
from .unrolled import UnrolledGradient

__all__ = [
    "AdjointGradient",
    "Evaluation",
    "Gradient",
    "ImplicitGradient",
    "NeumannGradient",
    "PhantomGradient",
    "ReversibleGradient",
    "ShineGradient",
    "SplittingGradient",
    "Unconverged",
    "UnrolledGradient",
    "with_value",
]
