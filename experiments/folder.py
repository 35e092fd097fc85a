"""The folder of a run: written beside its place, as NAME.partial, and moved there once it is whole."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError, Interrupted, first_line

UNFINISHED = "unfinished"
"""What lies under this name in the folder of a run serves to go on with it, and goes when it is whole."""


@contextmanager
def run_folder(
    out: Path | None, task: str, *, resumable: bool = False, resume: Path | None = None
) -> Iterator[tuple[Path, Path]]:
    """The folder to write into and the name it will take; removed whole if anything goes wrong in between.

    Args:
        out: new or empty; None: the first free of `runs/TASK-1`, `runs/TASK-2`, …
        task: names the run.
        resumable: keep it, whatever goes wrong, once a training has left something in it.
        resume: a run that was kept, by its final name or its folder; None: a new one.
    """
    if resume is None:
        final = _first_free(task) if out is None else out
        place = _new(final, resumable)
    else:
        final = _final(resume)
        place = final.resolve()
    partial = _partial(place)
    try:
        with _held(partial, final):
            yield partial, final
            shutil.rmtree(partial / UNFINISHED, ignore_errors=True)
            partial.rename(place)
    except BaseException as error:
        kept = resume is not None or (resumable and _trained(partial))
        if not kept:
            shutil.rmtree(partial, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"{_partial(final)} is kept; {_how(final)}") from error
        elif not isinstance(error, (InputError, BrokenPipeError)):
            print(f"implicit: {_partial(final)} is kept; {_how(final)}", file=sys.stderr)
        raise


def partial_folder(run: Path) -> Path:
    """The folder of a run that was killed or interrupted, by its final name or its own; `InputError` without one."""
    partial = _partial(_final(run))
    if partial.is_dir():
        return partial
    why = "is whole: there is nothing to go on with" if run.is_dir() else f"was not begun: {partial} is not there"
    raise InputError(f"--resume {run}: the run {why}")


def _new(final: Path, resumable: bool) -> Path:
    """The true place of a new run, free, with its folder made beside it."""
    try:
        # found and freed now: a move that fails after training would cost the run
        place = final.resolve()
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise InputError(f"--out {final} exists and is not an empty folder: name a new one")
        partial = _partial(place)
        if partial.exists():
            remedy = f"{_how(final)}, or remove it" if resumable else "remove it"
            raise InputError(f"--out {final}: {partial} is there already, of a run under way or killed; {remedy}")
        if place.exists():
            place.rmdir()
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {final} cannot be used ({error.strerror}): name another folder") from error
    return place


@contextmanager
def _held(folder: Path, final: Path) -> Iterator[None]:
    """Hold the folder against a second process; the system lets go of it however this one ends."""
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


def _trained(partial: Path) -> bool:
    """Whether a training has left anything."""
    return any(path.is_file() for part in ("checkpoints", "logs") for path in (partial / part).rglob("*"))


def _how(final: Path) -> str:
    return f"go on with: implicit compare --resume {shlex.quote(str(final))}"


def _first_free(task: str) -> Path:
    number = 1
    while (path := Path("runs") / f"{task}-{number}").exists() or _partial(path).exists():
        number += 1
    return path


def _final(run: Path) -> Path:
    return run.with_name(run.name.removesuffix(".partial"))


def _partial(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Keep what the run was started with."""
    (folder / UNFINISHED).mkdir(exist_ok=True)
    path = folder / UNFINISHED / "settings.new"
    path.write_text(json.dumps(settings, indent=1) + "\n")
    os.replace(path, path.with_suffix(".json"))  # whole, or as it was


def read_settings(run: Path) -> dict[str, Any]:
    """What a run was started with that was killed or interrupted, by its final name or its folder."""
    path = partial_folder(run) / UNFINISHED / "settings.json"
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"--resume {run}: {path} cannot be read ({first_line(error)}): remove {path.parents[1]}, and start anew"
        ) from error
    if not isinstance(settings, dict):
        raise InputError(f"--resume {run}: {path} holds no settings: remove {path.parents[1]}, and start anew")
    return settings


def write_results(folder: Path, numbers: dict[str, Any]) -> None:
    """Write `results.json` into the folder."""
    (folder / "results.json").write_text(json.dumps(_finite(numbers), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The same with null for NaN and Inf, which JSON does not know: a training that diverged is a result too."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
