"""What takes part in a comparison, and every method in every reading it admits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from models import METHODS, Method
from models.readings import Explicit, Implicit, InfiniteDepth, Reading, Sweeps

from ..errors import InputError
from .terms import Build

MakeNetwork = Callable[[Method, Reading, int], nn.Module]


@dataclass(frozen=True)
class Contestant:
    """One row of the comparison."""

    reading: str
    """Explicit, implicit, equilibrium or parallel."""
    description: str
    """In words, for the table."""
    build: Build
    """Makes the network from its dial."""
    usual: bool = True
    """Whether it takes part where all are asked for."""
    fixed: bool = False
    """Whether it has one size, whatever its dial: it is listed as it is, equal terms or not."""
    baseline: str = "gd"
    """The contestant that sets its size and that it is compared with."""
    dial: int = 1
    """Of the baseline."""
    learning_rate: float | None = None
    """Its own; None: the task's."""


Contestants = dict[str, Contestant]


def against(baseline: str, dial: int, contestants: Contestants) -> Contestants:
    """The same contestants, their sizes and scores measured against a baseline that has this dial."""
    return {name: replace(contestant, baseline=baseline, dial=dial) for name, contestant in contestants.items()}


def readings(make: MakeNetwork, *, form: str = "") -> Contestants:
    """Every method in every reading it admits; learned coefficients, but for equilibria.

    Args:
        make: a network from a method, a reading and a dial.
        form: appended to the names; a form takes part where it is named, not where all are asked for.
    """

    def row(reading: str, description: str, method: Method, kind: Reading, usual: bool = True) -> Contestant:
        return Contestant(
            reading, description + form.replace("-", ", "), partial(make, method, kind), usual and not form
        )

    rows = {}
    for name, method in METHODS.items():
        learned, title = method.learned(), _title(method)
        if method.is_proximal:
            rows[f"{name}-explicit"] = row("explicit", f"{title}, alpha = 1", learned, Explicit(), name != "ppa")
            rows[f"{name}-implicit"] = row(
                "implicit", f"{title}, alpha = 0: a solve in each layer", learned, Implicit()
            )
        else:
            rows[name] = row("explicit", f"{title}, unrolled", learned, Explicit())
    for name, method in METHODS.items():
        title = _title(method)
        if method.has_equilibrium:
            rows[f"{name}-deq"] = row(
                "equilibrium", f"infinite depth: one tied step, {title}", method, InfiniteDepth(), name == "pgd"
            )
        if not method.is_proximal:
            rows[f"{name}-parallel"] = row(
                "parallel", f"{title}, one sweep over depth", method.learned(), Sweeps(1), name == "gd"
            )
    return {name + form: contestant for name, contestant in rows.items()}


def named(models: str, known: Contestants) -> list[str]:
    """The names in a list with commas, each once; `InputError` with what there is for an unknown one."""
    names = [name.strip() for name in models.split(",")]
    for name in names:
        if name not in known:
            raise InputError(f"unknown model {name!r} in --models: choose from {', '.join(known)}")
    return list(dict.fromkeys(names))


def _title(method: Method) -> str:
    """The class's name in words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(method).__name__)
