"""The command line: `implicit compare TASK`."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError, require
from .tasks import TASKS, Source
from .terms import TERMS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser().parse_args([_shipped(argument) for argument in given])
    except (UnicodeDecodeError, RecursionError) as error:  # a recipe that is no text, or that reads itself
        print(f"implicit: a recipe cannot be read: {error}", file=sys.stderr)
        return 2
    run = {"compare": _compare, "universality": _universality, "depth": _depth, "sweeps": _sweeps}[options.command]
    for name in ("SIGTERM", "SIGHUP"):  # a polite end is an interruption too; Windows lacks the second
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    try:
        require("plots", "matplotlib")
        require("train", "torchmetrics", "sklearn", "jinja2", "rich", "lightning")
        run(options)
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


def _compare(options: argparse.Namespace) -> None:
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


def _universality(options: argparse.Namespace) -> None:
    from .universality import universality

    universality(
        models=options.models,
        depths=options.depths,
        epochs=getattr(options, "epochs", None),
        seeds=options.seeds,
        out=getattr(options, "out", None),
        device=options.device,
    )


def _depth(options: argparse.Namespace) -> None:
    from .depth import depth

    depth(
        widths=options.widths,
        batches=options.batches,
        depths=options.depths,
        out=getattr(options, "out", None),
        device=options.device,
    )


def _sweeps(options: argparse.Namespace) -> None:
    from .sweeps import sweeps

    sweeps(
        epochs=getattr(options, "epochs", None),
        seeds=options.seeds,
        out=getattr(options, "out", None),
        device=options.device,
    )


def _shipped(argument: str) -> str:
    """`@NAME` of a recipe that comes with the package as the path of its file; anything else as it is."""
    recipe = Path(__file__).parent / "recipes" / f"{argument[1:]}.txt"
    return f"@{recipe}" if argument.startswith("@") and recipe.is_file() else argument


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where the allowed is listed; reads recipes, files of arguments."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        try:
            return shlex.split(arg_line, comments=True)
        except ValueError as error:  # a quotation that is not closed
            self.error(f"the line {arg_line.strip()!r} of a recipe cannot be read: {error}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="implicit",
        description="Compare implicit, explicit and parallel networks.",
        epilog="@NAME reads further arguments from the recipe NAME of this package, or from a file.",
        allow_abbrev=False,
        fromfile_prefix_chars="@",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compare = _command(
        commands,
        "compare",
        "train every reading on one task; print a table and write a report",
        "Train networks on one task on equal terms, print a table, write a report.",
    )
    compare.add_argument("task", choices=TASKS, help="the data")
    compare.add_argument(
        "--models",
        default="all",
        help="names separated by commas, or all (an unknown name is answered with the list)",
    )
    compare.add_argument(
        "--match",
        choices=TERMS,
        default="parameters",
        help="what all networks have in common with the baseline",
    )
    compare.add_argument(
        "--data", help="folder of the data, where the task needs one (default: none)", default=argparse.SUPPRESS
    )
    compare.add_argument(
        "--download", action="store_true", help="fetch the data into the folder first, where torchvision can"
    )
    _add_training(compare, epochs="the task's")
    _add_place(compare, "runs/TASK-1")
    universality = _command(
        commands,
        "universality",
        "error of narrow networks against their depth, with fitted slopes",
        "Train narrow networks of growing depth on Telgarsky's function; fit error against depth.",
    )
    universality.add_argument(
        "--models", default="gd,nesterov,apg2,dense,pgd-implicit", help="names separated by commas"
    )
    universality.add_argument("--depths", type=_counts, default="1,2,4,8,16", help=RISING)
    _add_training(universality, epochs="30")
    _add_place(universality, "runs/universality-1")
    depth = _command(
        commands,
        "depth",
        "seconds against depth: serial, implicit, Para-Former, sweeps over the depth",
        "Time inference and training of transformer blocks against their number, in every reading.",
    )
    depth.add_argument("--depths", type=_counts, default="1,2,4,8,16,32,64", help=RISING)
    depth.add_argument("--widths", type=_counts, default="48,192", help="widths of a token, multiples of 3, likewise")
    depth.add_argument("--batches", type=_counts, default="1,32", help="batch sizes, likewise")
    _add_place(depth, "runs/depth-1")
    sweeps = _command(
        commands,
        "sweeps",
        "train with K sweeps over the depth, run with K': accuracy and latency",
        "Train one network on digits with K sweeps over its depth, for several K, and run each with every K'.",
    )
    _add_training(sweeps, epochs="the task's")
    _add_place(sweeps, "runs/sweeps-1")
    return parser


RISING = "numbers of layers, rising, separated by commas"


def _command(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def _add_training(parser: argparse.ArgumentParser, epochs: str) -> None:
    parser.add_argument(
        "--epochs",
        type=_count,
        help=f"passes over the training part (default: {epochs})",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--seeds", type=_count, default=5, help="how many seeds: 0, 1, …; the same for each network")


def _add_place(parser: argparse.ArgumentParser, first: str) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        help=f"folder of the run, new or empty (default: the first free of {first}, …)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto: the GPU where there is one")


def _counts(text: str) -> list[int]:
    numbers = [_count(part) for part in text.split(",")]
    if sorted(set(numbers)) != numbers:
        raise argparse.ArgumentTypeError(f"{text!r} does not rise")
    return numbers


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
