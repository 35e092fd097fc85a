"""Gradient policies: how to differentiate through an equilibrium."""

from .base import Gradient
from .exact import ImplicitGradient
from .phantom import PhantomGradient
from .unrolled import UnrolledGradient

__all__ = ["Gradient", "ImplicitGradient", "PhantomGradient", "UnrolledGradient"]
