"""Every method in every reading it admits."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from models import METHODS, Method
from models.readings import Explicit, Implicit, InfiniteDepth, Reading, Sweeps

from .contestant import Contestant, Contestants

MakeNetwork = Callable[[Method, Reading, int], nn.Module]


def readings(make: MakeNetwork, *, form: str = "") -> Contestants:
    """Every method in every reading it admits; coefficients are learned, except in equilibria.

    Args:
        make: makes a network from a method, a reading and a size.
        form: appended to the names; contestants with a form take part if they are named, but not in `all`.
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


def _title(method: Method) -> str:
    """The class's name in words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(method).__name__)
