"""Failures that do not end a run: noted in one line, kept in full in its logs, and reported at the end."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .errors import InputError, TrainingError, first_line

T = TypeVar("T")
_ENDING = (InputError, TrainingError, BrokenPipeError)
"""Bad input, processes that have lost each other, a broken pipe: these end the run itself."""


@dataclass(frozen=True)
class Failure:
    """Something that the run was to do and could not."""

    what: str
    """What failed, in words, such as `the training`."""
    part: str
    """The part of the run in which it failed, such as `gd, seed 0`; empty: the run as a whole."""
    error: str
    """Class of the error and the first line of its message."""
    log: str
    """Path of its full traceback, within the run's folder."""

    def __str__(self) -> str:
        return f"{self.what}{f' of {self.part}' * bool(self.part)} failed ({self.error}); see {self.log}"


def alike(failures: list[Failure]) -> list[list[Failure]]:
    """Group failures of the same thing with the same error, so that each group is reported once."""
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        groups.setdefault((failure.what, failure.error), []).append(failure)
    return list(groups.values())


class Failures:
    """The failures of a run, or of a part of it, in order.

    Args:
        tell: prints a line; None: nothing is printed.
    """

    def __init__(self, tell: Callable[[str], object] | None = None) -> None:
        self.tell = tell
        self.folder: Path | None = None
        """The run's folder; None: no logs are written."""
        self.found: list[Failure] = []
        self._whole: Failures | None = None
        self._part, self._place = "", ""

    def within(self, part: str, place: str) -> Failures:
        """The failures of a part of the run, which also count as failures of the run.

        Args:
            part: in words, as in `Failure`.
            place: folder of its logs, below those of the run.
        """
        inner = Failures(self.tell)
        inner.folder, inner._whole, inner._part, inner._place = self.folder, self, part, f"{place}/"
        return inner

    def attempt(self, what: str, make: Callable[[], T]) -> T | None:
        """What `make` returns; None if it raises, which is noted as a failure.

        A success removes the log of an earlier attempt.
        """
        log = f"logs/{self._place}{re.sub(r'[^A-Za-z0-9]+', '-', what.removeprefix('the ')).strip('-')}.log"
        path = None if self.folder is None else self.folder / log
        try:
            value = make()
        except _ENDING:
            raise
        except Exception as error:
            with suppress(OSError):  # a full disk is reported by the failure itself
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(traceback.format_exc(), encoding="utf-8")
            kind, line = type(error).__name__, first_line(error)
            self._note(Failure(what, self._part, kind if line == kind else f"{kind}: {line}", log))
            return None
        if path is not None:
            path.unlink(missing_ok=True)
        return value

    def _note(self, failure: Failure) -> None:
        self.found.append(failure)
        if self._whole is not None:
            self._whole._note(failure)
        elif self.tell is not None:
            self.tell(str(failure))
