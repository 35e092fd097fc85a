"""Errors that a user of the command line sees, each in one line."""

from __future__ import annotations

import importlib


class InputError(Exception):
    """Bad input: the message says what was wrong and what is allowed."""


class TrainingError(Exception):
    """One of several processes failed: the message says which, why, and where its log is."""


class Interrupted(KeyboardInterrupt):
    """An interruption after which something was kept: the message says how to resume."""


def require(extra: str, *packages: str) -> None:
    """Raise `InputError` unless the packages of an extra can be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"{package} cannot be imported ({error}): install it with pip install 'implicit-networks[{extra}]'"
            ) from error


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or the name of its class if the message is empty."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
