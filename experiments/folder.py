"""The folder of a run: written beside its place, and moved there once it is whole."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError


@contextmanager
def run_folder(out: Path | None, task: str) -> Iterator[tuple[Path, Path]]:
    """The folder to write into and the name it will take; removed whole if anything goes wrong in between.

    Args:
        out: new or empty; None: the first free of `runs/TASK-1`, `runs/TASK-2`, …
    """
    final = _first_free(task) if out is None else out
    try:
        # the true place, found and freed now: a move that fails after training would cost the run
        place = final.resolve()
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise InputError(f"--out {final} exists and is not an empty folder: name a new one")
        partial = _partial(place)
        if partial.exists():
            raise InputError(f"--out {final}: {partial} is there already, of a run under way or killed; remove it")
        if place.exists():
            place.rmdir()
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {final} cannot be used ({error.strerror}): name another folder") from error
    try:
        yield partial, final
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _first_free(task: str) -> Path:
    number = 1
    while (path := Path("runs") / f"{task}-{number}").exists() or _partial(path).exists():
        number += 1
    return path


def _partial(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


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
