"""What names on the command line stand for: the toolkit's own by a short name, a user's by `MODULE:NAME`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .errors import InputError, first_line


def found(name: str, known: Mapping[str, str], what: str) -> Any:
    """The object that a name stands for; `InputError` where there is none.

    Args:
        name: a key of `known`, or `MODULE:NAME`; the module is looked up in the working folder first.
        known: short names of what the toolkit has, each with its `MODULE:NAME`.
        what: a word for the kind of object, such as `task`.
    """
    place = known.get(name, name)
    if ":" not in place:
        raise unknown(name, known, what)
    module_name, _, attribute = place.partition(":")
    if module_name.endswith(".py") or os.path.basename(module_name) != module_name:
        meant = os.path.normpath(module_name).removesuffix(".py").replace(os.sep, ".")
        raise InputError(f"{what} {name}: name a module, not a file: {meant}:{attribute}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(f"{what} {name}: {where(error)}") from error  # it exists, but imports a missing one
        raise InputError(
            f"{what} {name}: there is no module {error.name} in {os.getcwd()} or among the installed packages"
        ) from error
    except Exception as error:
        raise InputError(f"{what} {name}: {module_name} cannot be imported: {where(error)}") from error
    if not hasattr(module, attribute):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{what} {name}: {module_name} has no {attribute!r}{similar(attribute, functions)}")
    return getattr(module, attribute)


def unknown(name: str, known: Iterable[str], what: str, *, own: bool = True) -> InputError:
    """The error for a name that is not one of the toolkit's; `own`: whether a user's own name is allowed there."""
    names = list(known)
    choice = f"Choose from {', '.join(names)}" + "; for your own, name MODULE:FUNCTION" * own
    return InputError(f"unknown {what} {name!r}{similar(name, names) or '.'} {choice}")


def similar(name: str, names: Iterable[str]) -> str:
    """`; did you mean …?`, or an empty string."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1) or [own for own in names if own.endswith(f":{name}")]
    return f"; did you mean {close[0]!r}?" if close else ""


def where(error: BaseException) -> str:
    """The error in one line, with the place in the code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"


def file_name(name: str) -> str:
    """The name made fit for a file or folder; a changed or shortened name gets a checksum, which keeps it distinct."""
    plain = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip(".-")
    return plain if plain == name and len(name) <= 60 else f"{plain[:60]}-{zlib.crc32(name.encode()):08x}"


def arguments(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The function's positional parameters; none if Python cannot read its signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C
        return []
    return [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
