"""How arguments are parsed: errors in words, recipes read from files, defaults shown in the help."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..names import similar

RECIPES = Path(__file__).parent / "recipes"


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, with a guess at what was meant, and reads recipes (files of arguments)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_Shown, allow_abbrev=False)

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        try:
            return shlex.split(arg_line, comments=True)
        except ValueError as error:  # an unclosed quotation
            self.error(f"the line {arg_line.strip()!r} of a recipe cannot be read: {error}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            (commands,) = (action.choices for action in self._actions if isinstance(action.choices, dict))
            known = commands[found.command]._option_string_actions if found.command else self._option_string_actions
            self.error(f"unrecognized arguments: {' '.join(rest)}{similar(rest[0], known)}")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            allowed = f"choose from {', '.join(names)}"
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{similar(str(value), names)} ({allowed})")


class _Shown(argparse.HelpFormatter):
    """Help with the default of every option that has one, flags aside, as it would be typed."""

    def _get_help_string(self, action: argparse.Action) -> str:
        words = action.help or ""
        plain = action.default is None or action.default is argparse.SUPPRESS or isinstance(action.default, bool)
        return words if plain else f"{words} (default: %(default)s)"


class Version(argparse.Action):
    """Prints the version of the distribution."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from importlib.metadata import version

        print(f"implicit-networks {version('implicit-networks')}")
        parser.exit()


def shipped(argument: str) -> str:
    """Turn `@NAME` of a recipe shipped with the package into `@` and its path; leave anything else unchanged."""
    recipe = RECIPES / f"{argument[1:]}.txt"
    return f"@{recipe}" if argument.startswith("@") and recipe.is_file() else argument


def count(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def counts(text: str) -> list[int]:
    """Strictly increasing whole numbers of at least 1, separated by commas."""
    numbers: Sequence[int] = [count(part) for part in text.split(",")]
    if sorted(set(numbers)) != numbers:
        raise argparse.ArgumentTypeError(f"{text!r} is not strictly increasing")
    return list(numbers)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
