"""What takes part in a comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .terms import Build


@dataclass(frozen=True)
class Contestant:
    """One row of a comparison: how to build its network at any size, and what it is compared with.

    A function of the task, or of the task and a size, is enough for `compare`; a `Contestant` says more about it.
    """

    reading: str
    """Explicit, implicit, equilibrium, parallel, or a word of your own: for the table."""
    description: str
    """In words, for the report."""
    build: Build
    """Makes a new network from a size, usually the width of its hidden layers."""
    usual: bool = True
    """Whether `all` includes it."""
    fixed: bool = False
    """Whether its size is fixed, whatever `build` is given; it is then compared as it is, without matching."""
    baseline: str | None = None
    """The contestant that it is compared with and that sets its size; None: the first of the comparison."""
    size: int | None = None
    """Its size as a baseline, and where sizes are not matched; None: its size is known only where they are."""
    learning_rate: float | None = None
    """Its own learning rate, used without a search; None: the rate is searched for, or is the task's."""


Contestants = dict[str, Contestant]


def against(baseline: str, size: int | None, contestants: Contestants) -> Contestants:
    """The same contestants, compared with this baseline and of this size; None: each keeps its own size."""
    return {
        name: replace(contestant, baseline=baseline, size=contestant.size if size is None else size)
        for name, contestant in contestants.items()
    }
