"""What a user of the command line can get wrong, said in one line."""

from __future__ import annotations

import importlib


class InputError(Exception):
    """Bad input: the message says what was wrong and what is allowed."""


def require(extra: str, *packages: str) -> None:
    """Raise `InputError` unless the packages of an extra can be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"{package} cannot be imported ({error}): install it with pip install 'implicit-networks[{extra}]'"
            ) from error
