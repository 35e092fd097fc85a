"""What takes part in a comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .terms import Build


@dataclass(frozen=True)
class Contestant:
    """One row of a comparison: a network of any size, and whom it is compared with.

    A function of the task, or of the task and a size, is enough for `compare`; this says more of it.
    """

    reading: str
    """Explicit, implicit, equilibrium, parallel, or a word of your own: for the table."""
    description: str
    """In words, for the report."""
    build: Build
    """Makes a new network from a size, mostly the width of its hidden layers."""
    usual: bool = True
    """Whether it takes part where all are asked for."""
    fixed: bool = False
    """Whether it has one size, whatever `build` is given: it is listed as it is, equal terms or not."""
    baseline: str | None = None
    """The contestant that sets its size and that it is compared with; None: the first of the comparison."""
    size: int | None = None
    """Its size as a baseline, and where all have the same; None: it is known only where sizes are matched."""
    learning_rate: float | None = None
    """Its own, which is not searched for; None: it is searched for, or the task's."""


Contestants = dict[str, Contestant]


def against(baseline: str, size: int | None, contestants: Contestants) -> Contestants:
    """The same contestants, measured against this baseline; None: each keeps its size where none is matched."""
    return {
        name: replace(contestant, baseline=baseline, size=contestant.size if size is None else size)
        for name, contestant in contestants.items()
    }
