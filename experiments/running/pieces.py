"""A run made of pieces, each measured by itself and kept at once, and of a figure of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure
from rich.console import Console

from ..failures import Failures
from ..reporting.figures import styled
from .folder import run_folder, tell_the_end, write_results
from .settings import write_settings
from .unfinished import read, write

T = TypeVar("T")


@dataclass(frozen=True)
class Pieces:
    """The run under way; a failure is noted and does not stop the rest."""

    folder: Path
    failures: Failures
    numbers: dict[str, Any] = field(default_factory=dict)
    """The results so far."""

    def piece(self, name: str, what: str, make: Callable[[], T]) -> T | None:
        """The plain numbers that an earlier run kept under that name, or that `make` returns; None if it fails."""
        value: T | None = read(self.folder, name)
        if value is None:
            value = self.failures.attempt(what, make)
            if value is not None:
                write(self.folder, name, value)
        return value

    def results(self, numbers: dict[str, Any]) -> None:
        """Add these numbers to the results so far, and write them all."""
        self.numbers.update(numbers)
        write_results(self.folder, {**self.numbers, "failures": [vars(failure) for failure in self.failures.found]})

    def figure(self, name: str, draw: Callable[[], Figure]) -> None:
        """Draw a figure into `NAME.png`."""
        path = self.folder / f"{name}.png"
        path.unlink(missing_ok=True)  # one of an earlier run may lack a piece

        def save() -> None:
            with styled():
                draw().savefig(path, dpi=150)

        self.failures.attempt(f"the figure {name}", save)
        self.results({})


@contextmanager
def in_pieces(
    command: str, settings: dict[str, Any], out: Path | None, resume: Path | None, console: Console
) -> Iterator[Pieces]:
    """A run of the command with these settings; at its end it prints where the figure is, and what is missing."""
    failures = Failures(lambda line: console.print(line, highlight=False, markup=False))
    with run_folder(out, command, failures, resume=resume) as (folder, final):
        write_settings(folder, {"command": command, **settings})
        yield Pieces(folder, failures)
    tell_the_end(final, f"{command}.png", "figure", command, failures, console)
