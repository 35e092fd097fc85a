"""The command line: `implicit compare TASK`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .errors import InputError, Interrupted, TrainingError, require
from .folder import read_settings
from .launch import launch
from .options import parser, settled, shipped
from .tasks import Source
from .team import launched


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a failed process, 2 for bad input, 130 when interrupted."""
    code = _answered(list(sys.argv[1:] if arguments is None else arguments))
    if code and launched():
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)  # the other processes may wait for this one, and see that it has gone
    return code


def _answered(given: list[str]) -> int:
    try:
        options = parser().parse_args([shipped(argument) for argument in given])
    except (UnicodeDecodeError, RecursionError) as error:  # a recipe that is no text, or that reads itself
        print(f"implicit: a recipe cannot be read: {error}", file=sys.stderr)
        return 2
    run = {"compare": _compare, "universality": _universality, "depth": _depth, "sweeps": _sweeps}[options.command]
    for name in ("SIGTERM", "SIGHUP"):  # a polite end is an interruption too; Windows lacks the second
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    try:
        return run(options, given)
    except InputError as error:
        _say(str(error))
        return 2
    except TrainingError as error:
        print(f"implicit: {error}", file=sys.stderr)  # each process for itself
        return 1
    except BrokenPipeError:
        # whoever read the progress has gone; nothing more can be said, and nothing half-written is left
        sys.stdout = None  # type: ignore[assignment]
        return 141
    except Interrupted as end:
        _say(f"interrupted; {end}")
        return 130
    except KeyboardInterrupt:
        _say("interrupted; nothing was kept")
        return 130


def _say(message: str) -> None:
    """Of several processes the leading one speaks for all."""
    if not launched() or os.environ["RANK"] == "0":
        print(f"implicit: {message}", file=sys.stderr)


def _compare(options: argparse.Namespace, given: list[str]) -> int:
    chosen = vars(options)
    plain = parser(defaults=False).parse_args([shipped(argument) for argument in given])
    typed = {name for name, value in vars(plain).items() if value is not None}
    resume: Path | None = chosen.get("resume")
    if resume is not None:
        chosen = settled(chosen, typed, read_settings(resume))
    elif "task" not in typed:
        raise InputError("compare needs a task, or --resume RUN; see implicit compare --help")
    devices, nodes = chosen["devices"], chosen["nodes"]
    if not launched() and devices * nodes > 1:
        return launch(given, devices, nodes)
    if launched() and typed & {"devices", "nodes"} and devices * nodes != int(os.environ["WORLD_SIZE"]):
        size = os.environ["WORLD_SIZE"]
        raise InputError(f"--devices {devices} --nodes {nodes} are not the {size} processes that were launched")
    _require()
    from .compare import compare  # the libraries of training take seconds to import: not for --help

    compare(
        chosen["task"],
        models=chosen["models"],
        match=chosen["match"],
        epochs=chosen.get("epochs"),
        seeds=chosen["seeds"],
        out=chosen.get("out"),
        device=chosen["device"],
        source=Source(chosen.get("data"), chosen["download"]),
        precision=chosen["precision"],
        strategy=chosen["strategy"],
        resume=resume,
    )
    return 0


def _require() -> None:
    """`InputError` unless what every command uses is there."""
    require("plots", "matplotlib")
    require("train", "torchmetrics", "sklearn", "jinja2", "rich", "lightning")


def _alone(options: argparse.Namespace) -> None:
    """The same for a command of one process."""
    if launched():
        raise InputError(f"{options.command} runs in one process: start it without torchrun")
    _require()


def _universality(options: argparse.Namespace, given: list[str]) -> int:
    _alone(options)
    from .universality import universality

    universality(
        models=options.models,
        depths=options.depths,
        epochs=getattr(options, "epochs", None),
        seeds=options.seeds,
        out=getattr(options, "out", None),
        device=options.device,
    )
    return 0


def _depth(options: argparse.Namespace, given: list[str]) -> int:
    _alone(options)
    from .depth import depth

    depth(
        widths=options.widths,
        batches=options.batches,
        depths=options.depths,
        out=getattr(options, "out", None),
        device=options.device,
    )
    return 0


def _sweeps(options: argparse.Namespace, given: list[str]) -> int:
    _alone(options)
    from .sweeps import sweeps

    sweeps(
        epochs=getattr(options, "epochs", None),
        seeds=options.seeds,
        out=getattr(options, "out", None),
        device=options.device,
    )
    return 0


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
