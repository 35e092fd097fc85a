"""The arguments of the command line."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any, NoReturn

from ..contestants.terms import TERMS
from ..errors import InputError
from ..tasks import TASKS

WHERE = ("device", "devices", "nodes", "data")
"""Settings that a run may go on with others than it was started with."""


def settled(options: dict[str, Any], typed: set[str], recorded: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that goes on: its own, but for where it is to run; `InputError` where it is contradicted.

    Args:
        options: of the command line, with their defaults.
        typed: the names of those that were given.
        recorded: what the run was started with.
    """
    if "out" in typed:
        raise InputError("--resume names the folder of the run: leave out --out")
    command = recorded.get("command", "compare")
    if command != options["command"]:
        raise InputError(f"--resume: it is a run of implicit {command}, not of implicit {options['command']}")
    if command == "compare" and recorded.get("task") not in TASKS:
        raise InputError("--resume: the run's settings name no task: remove its folder, and start anew")
    for name in typed & set(recorded) - set(WHERE):
        if options[name] != recorded[name]:
            option = "the task" if name == "task" else f"--{name}"
            raise InputError(f"--resume: the run was started with {option} {recorded[name]}: leave out {options[name]}")
    return {**options, **{name: value for name, value in recorded.items() if name not in typed}}


def shipped(argument: str) -> str:
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


def parser(*, defaults: bool = True) -> argparse.ArgumentParser:
    """Of all commands; without the defaults, what is not None was given."""
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
    compare.add_argument("task", choices=TASKS, nargs="?", help="the data; a run to resume knows its own")
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
    _add_scale(compare)
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
    if not defaults:
        for command in (compare, universality, depth, sweeps):
            command.set_defaults(**{action.dest: None for action in command._actions if action.dest != "help"})
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
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with a run that was killed or interrupted, or do what failed in it (default: a new run)",
        default=argparse.SUPPRESS,
    )


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--devices", type=_count, default=1, help="GPUs, or processes, of each machine; they share each batch"
    )
    parser.add_argument("--nodes", type=_count, default=1, help="machines; the command is started on each")
    parser.add_argument(
        "--precision", choices=("32", "bf16", "16"), default="32", help="of the layers in training; 16 on GPUs only"
    )
    parser.add_argument(
        "--strategy",
        choices=("ddp", "fsdp"),
        default="ddp",
        help="ddp: each process holds the whole network; fsdp: its share of the weights",
    )


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
