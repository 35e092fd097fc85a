"""The folder of a run: written beside its place, as NAME.partial, and moved there once the run has ended."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, Interrupted
from ..failures import Failures
from ..names import file_name

if TYPE_CHECKING:
    from rich.console import Console

PYTHON = "experiments.compare"
"""Stands for the command in a run that a program has started."""
UNFINISHED = "unfinished"
"""Part of a run's folder that serves to resume it; removed once nothing is missing."""


@contextmanager
def run_folder(
    out: Path | None, command: str, failures: Failures, *, name: str | None = None, resume: Path | None = None
) -> Iterator[tuple[Path, Path]]:
    """The folder to write into, and its final path; a new run that ends early without results leaves no folder.

    Args:
        out: new or empty; None: the first free of `runs/NAME-1`, `runs/NAME-2`, …
        command: the command that is run.
        failures: those of the run; as long as it has any, it can be resumed.
        name: of the run; None: the command's.
        resume: a run that was kept, by its final name or its folder; None: a new one.
    """
    if resume is None:
        final = _first_free(name or command) if out is None else out
        place = _new(final, command)
    else:
        final = _final(resume)
        place = final.resolve()
    partial = _partial(place)
    ended_before = resume is not None and not partial.exists()
    if ended_before:  # with failures: should it be cut short now, it keeps its name and contents
        place.rename(partial)
    failures.folder = partial
    try:
        with _held(partial, final):
            yield partial, final
            if not failures.found:
                shutil.rmtree(partial / UNFINISHED, ignore_errors=True)
            partial.rename(place)
    except BaseException as error:
        with _undisturbed():
            kept = final if ended_before else _partial(final)
            if ended_before:
                partial.rename(place)
            elif resume is None and not _has_results(partial):
                shutil.rmtree(partial, ignore_errors=True)
                raise
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"{kept} is kept; {how_to_resume(final, command)}") from error
            if not isinstance(error, (InputError, BrokenPipeError)):
                print(f"implicit: {kept} is kept; {how_to_resume(final, command)}", file=sys.stderr)
            raise


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A block that no interruption cuts short, such as the launcher's where another process has failed as well."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), signal.SIG_IGN) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            if handler is not None:  # as of a handler that Python has not installed
                signal.signal(getattr(signal, name), handler)


def resumable_folder(run: Path) -> Path:
    """The folder of a run that was killed or interrupted, or that ended with failures, by its final name or its own.

    `InputError` where there is none.
    """
    final = _final(run)
    partial = _partial(final)
    if partial.is_dir():
        return partial
    if (final / UNFINISHED).is_dir():
        return final
    why = "is complete: there is nothing to resume" if run.is_dir() else f"was not started: there is no {partial}"
    raise InputError(f"--resume {run}: the run {why}")


def _new(final: Path, command: str) -> Path:
    """The resolved path of a new run, checked to be free, with its partial folder made beside it."""
    try:
        # checked and freed now: a move that failed after training would cost the run
        place = final.resolve()
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise InputError(f"--out {final} exists and is not an empty folder: name a new one")
        partial = _partial(place)
        if partial.exists():
            remedy = f"{how_to_resume(final, command)}, or remove it"
            raise InputError(f"--out {final}: {partial} exists, from a run that is under way or was killed; {remedy}")
        if place.exists():
            place.rmdir()
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {final} cannot be used ({error.strerror}): name another folder") from error
    return place


@contextmanager
def _held(folder: Path, final: Path) -> Iterator[None]:
    """Lock the folder against a second process; the system releases the lock however this one ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"--resume {final}: the run is under way in another process") from error
        yield
    finally:
        os.close(handle)


def _has_results(partial: Path) -> bool:
    """Whether a training or a measurement has left anything."""
    files = [path for part in ("checkpoints", "logs", UNFINISHED) for path in (partial / part).rglob("*")]
    return any(path.is_file() and path.stem != "settings" for path in files)


def how_to_resume(final: Path, command: str) -> str:
    """How to resume the run, in words."""
    if command == PYTHON:
        return f"resume with: compare(…, resume={str(final)!r})"
    return f"resume with: implicit {command} --resume {shlex.quote(str(final))}"


def _first_free(task: str) -> Path:
    number = 1
    while (path := Path("runs") / f"{file_name(task)}-{number}").exists() or _partial(path).exists():
        number += 1
    return path


def _final(run: Path) -> Path:
    return run.with_name(run.name.removesuffix(".partial"))


def _partial(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


def tell_the_end(final: Path, name: str, kind: str, command: str, failures: Failures, console: Console) -> None:
    """Print where the result of a run is, and what is missing in it.

    Args:
        final: the run's folder.
        name: file name of the result in it.
        kind: a word for the result.
        command: the command that was run.
        failures: those of the run.
        console: to print on.
    """
    if (final / name).exists():
        console.print(f"{kind}: {final / name}", soft_wrap=True, highlight=False)
    if failures.found:
        count = f"{len(failures.found)} failure{'s' * (len(failures.found) > 1)}"
        told = f"{count}, in full in {final / 'logs'}; {how_to_resume(final, command)}"
        console.print(told, soft_wrap=True, highlight=False, markup=False)


def write_results(folder: Path, numbers: dict[str, Any]) -> None:
    """Write `results.json` into the folder, whole or not at all."""
    path = folder / "results.new"
    path.write_text(json.dumps(_finite(numbers), indent=1, allow_nan=False) + "\n")
    os.replace(path, path.with_suffix(".json"))


def _finite(value: Any) -> Any:
    """The same with None for NaN and Inf, which JSON lacks: a training that diverged is a result too."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
