"""Check that Python finds our packages under their common names, and not foreign ones."""

from __future__ import annotations

import importlib.util
import os
import warnings

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def check_siblings() -> None:
    """Refuse a foreign `solvers`, without which nothing works here; warn of a foreign `models` or `experiments`."""
    if foreign := _foreign("solvers"):
        raise ImportError(
            f"implicit needs its own package solvers, {os.path.join(_HOME, 'solvers')}, but Python finds {foreign} "
            "first: rename that one, or start Python where it is not on sys.path"
        )
    for name in ("models", "experiments"):
        if foreign := _foreign(name):
            warnings.warn(
                f"import {name} finds {foreign}, not the {name} of implicit-networks, {os.path.join(_HOME, name)}. If "
                f"you need the latter, rename the former; if not, warnings.filterwarnings('ignore', 'import {name} "
                "finds') before import implicit silences this",
                stacklevel=3,
            )


def _foreign(name: str) -> str | None:
    """Where Python finds this package, if that is not beside `implicit`."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a stand-in that someone has put into sys.modules
        return None
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])]
    if not places or _same(places[0], os.path.join(_HOME, name)):
        return None
    return places[0]


def _same(path: str, other: str) -> bool:
    return os.path.normcase(os.path.realpath(path)) == os.path.normcase(os.path.realpath(other))
