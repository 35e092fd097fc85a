"""Checks of hyperparameters, for the classes that define them."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def check_positive_integer(owner: Any, name: str) -> None:
    value = getattr(owner, name)
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{_title(owner)}: {name}={value!r} must be an integer of at least 1")


def check_damping(owner: Any) -> None:
    value = owner.damping
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 2:
        raise ValueError(f"{type(owner).__name__}: damping={value!r} must be a number in (0, 2]; 1 is the full step")


def _title(owner: Any) -> str:
    """The name by which the user knows the object whose argument is wrong."""
    return getattr(owner, "title", type(owner).__name__)
