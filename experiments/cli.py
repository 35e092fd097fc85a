"""The command line: `implicit compare TASK`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .errors import InputError, require
from .tasks import TASKS, Source
from .terms import TERMS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    for name in ("SIGTERM", "SIGHUP"):  # a polite end is an interruption too; Windows lacks the second
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    try:
        require("plots", "matplotlib")
        require("train", "torchmetrics", "sklearn", "jinja2", "rich", "lightning")
        from .compare import compare  # the libraries of training take seconds to import: not for --help

        compare(
            options.task,
            models=options.models,
            match=options.match,
            epochs=getattr(options, "epochs", None),
            seeds=options.seeds,
            out=getattr(options, "out", None),
            device=options.device,
            source=Source(getattr(options, "data", None), options.download),
        )
    except InputError as error:
        print(f"implicit: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # whoever read the progress has gone; nothing more can be said, and nothing half-written is left
        sys.stdout = None  # type: ignore[assignment]
        return 141
    except KeyboardInterrupt:
        print("implicit: interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where the allowed is listed."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="implicit", description="Compare implicit, explicit and parallel networks.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="train every reading on one task; print a table and write a report",
        description="Train networks on one task at equal parameter counts, print a table, write a report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    compare.add_argument("task", choices=TASKS, help="the data")
    compare.add_argument(
        "--models",
        default="all",
        help="names separated by commas, or all (an unknown name is answered with the list)",
    )
    compare.add_argument(
        "--match", choices=TERMS, default="parameters", help="what the networks have in common with gd"
    )
    compare.add_argument(
        "--epochs", type=_count, help="passes over the training part (default: the task's)", default=argparse.SUPPRESS
    )
    compare.add_argument("--seeds", type=_count, default=5, help="how many seeds: 0, 1, …; the same for each network")
    compare.add_argument(
        "--data", help="folder of the data, where the task needs one (default: none)", default=argparse.SUPPRESS
    )
    compare.add_argument(
        "--download", action="store_true", help="fetch the data into the folder first, where torchvision can"
    )
    compare.add_argument(
        "--out",
        type=Path,
        help="folder of the run, new or empty (default: the first free of runs/TASK-1, …)",
        default=argparse.SUPPRESS,
    )
    compare.add_argument("--device", default="auto", help="cpu, cuda or auto: the GPU where there is one")
    return parser


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
