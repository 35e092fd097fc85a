"""Compare networks on one task: tasks, training, measurements and a report; the command line `implicit` is built on it.

from experiments import Classification, Task, compare, contestants_for
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import InputError, require

if TYPE_CHECKING:
    from .contestants.contestant import Contestant
    from .contestants.own import contestants_for
    from .contestants.steps import Step
    from .reporting.comparison import Comparison
    from .running.compare import compare
    from .tasks.goals import Classification, ExactMatch, Goal, NextCharacter, Regression, Restoration
    from .tasks.task import Source, Task

_PLACES = {
    "Classification": "tasks.goals",
    "Comparison": "reporting.comparison",
    "Contestant": "contestants.contestant",
    "ExactMatch": "tasks.goals",
    "Goal": "tasks.goals",
    "NextCharacter": "tasks.goals",
    "Regression": "tasks.goals",
    "Restoration": "tasks.goals",
    "Source": "tasks.task",
    "Step": "contestants.steps",
    "Task": "tasks.task",
    "compare": "running.compare",
    "contestants_for": "contestants.own",
}

__all__ = [
    "Classification",
    "Comparison",
    "Contestant",
    "ExactMatch",
    "Goal",
    "InputError",
    "NextCharacter",
    "Regression",
    "Restoration",
    "Source",
    "Step",
    "Task",
    "compare",
    "contestants_for",
]


def __getattr__(name: str) -> Any:
    """Import an exported name on first access, so that the command line answers `--help` without PyTorch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("compare", "Comparison"):
        require("plots", "matplotlib")
        require("train", "torchmetrics", "sklearn", "jinja2", "rich", "lightning")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
