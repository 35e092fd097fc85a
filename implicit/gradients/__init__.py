"""Gradient policies: how to differentiate through an equilibrium."""

from .base import Gradient
from .exact import ImplicitGradient, Unconverged
from .inexact import NeumannGradient, ShineGradient
from .phantom import PhantomGradient
from .reversible import ReversibleGradient
from .splitting import SplittingGradient
from .unrolled import UnrolledGradient

__all__ = [
    "Gradient",
    "ImplicitGradient",
    "NeumannGradient",
    "PhantomGradient",
    "ReversibleGradient",
    "ShineGradient",
    "SplittingGradient",
    "Unconverged",
    "UnrolledGradient",
]
