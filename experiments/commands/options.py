"""The commands and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..training import OPTIMIZERS
from .arguments import Parser, Version, count, counts, positive

RISING = "numbers of layers, increasing, separated by commas"


def parser(*, defaults: bool = True) -> Parser:
    """The parser of all commands; without the defaults, an option that is not None was given."""
    parser = Parser(
        prog="implicit",
        description="Compare implicit, explicit and parallel networks.",
        epilog="@NAME reads further arguments from the recipe NAME of this package, or from a file.",
        fromfile_prefix_chars="@",
    )
    parser.add_argument("--version", action=Version, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_compare, _add_universality, _add_depth, _add_sweeps):
        command = add(commands)
        if not defaults:
            command.set_defaults(**{action.dest: None for action in command._actions if action.dest != "help"})
    return parser


def _add_compare(commands: Any) -> Parser:
    compare: Parser = commands.add_parser(
        "compare",
        help="train every reading, or networks of your own, on one task; print a table and write a report",
        description="Train networks on one task on equal terms, print a table and write a report. "
        "TASK is one of those in --list, or your own MODULE:FUNCTION that returns an experiments.Task.",
    )
    compare.add_argument("task", nargs="?", metavar="TASK", help="the data; not needed with --resume")
    compare.add_argument("--list", action="store_true", help="list the tasks, or the models of TASK, and exit")
    compare.add_argument(
        "--models",
        default="all",
        help="names separated by commas: all, names in --list, a MODULE:FUNCTION of yours that makes a network",
    )
    compare.add_argument(
        "--baseline", help="model that all are compared with (default: each model's own, or the first)"
    )
    compare.add_argument(
        "--match",
        choices=("parameters", "flops", "shape"),
        default="parameters",
        help="what all networks have in common with the baseline",
    )
    compare.add_argument("--data", help="folder of the data, where the task needs one (default: none)")
    compare.add_argument(
        "--download", action="store_true", help="download the data into the folder first, where possible"
    )
    _add_training(compare, "the task's")
    compare.add_argument("--rows", type=count, help="rows of each part, at most, drawn once (default: all)")
    compare.add_argument("--batch", type=count, help="pairs per training step (default: the task's)")
    compare.add_argument(
        "--learning-rate",
        type=positive,
        help="largest rate of the schedule, where the search starts (default: the task's)",
    )
    compare.add_argument(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to choose each network's learning rate, out of three to five, on data held back from training",
    )
    compare.add_argument(
        "--optimizer",
        help=f"{', '.join(OPTIMIZERS)}, or MODULE:CLASS, such as torch.optim:Adagrad (default: the task's)",
    )
    _add_place(compare, "runs/TASK-1")
    compare.add_argument(
        "--devices", type=count, default=1, help="GPUs, or processes, per machine; they share each batch"
    )
    compare.add_argument("--nodes", type=count, default=1, help="machines; start the command on each")
    compare.add_argument(
        "--precision",
        choices=("32", "bf16", "16"),
        default="32",
        help="arithmetic of the layers in training; 16 on GPUs only",
    )
    compare.add_argument(
        "--strategy",
        choices=("ddp", "fsdp"),
        default="ddp",
        help="ddp: each process holds the whole network; fsdp: its share of the weights",
    )
    return compare


def _add_universality(commands: Any) -> Parser:
    universality: Parser = commands.add_parser(
        "universality",
        help="error of narrow networks against their depth, with fitted slopes",
        description="Train narrow networks of growing depth on Telgarsky's function; fit error against depth.",
    )
    universality.add_argument(
        "--models", default="gd,nesterov,apg2,dense,pgd-implicit", help="names separated by commas"
    )
    universality.add_argument("--depths", type=counts, default="1,2,4,8,16", help=RISING)
    _add_training(universality, "30")
    _add_place(universality, "runs/universality-1")
    return universality


def _add_depth(commands: Any) -> Parser:
    depth: Parser = commands.add_parser(
        "depth",
        help="seconds against depth: serial, implicit, Para-Former, sweeps over the depth",
        description="Time inference and training of transformer blocks against their number, in every reading.",
    )
    depth.add_argument("--depths", type=counts, default="1,2,4,8,16,32,64", help=RISING)
    depth.add_argument("--widths", type=counts, default="48,192", help="widths of a token, multiples of 3, increasing")
    depth.add_argument("--batches", type=counts, default="1,32", help="batch sizes, increasing")
    _add_place(depth, "runs/depth-1")
    return depth


def _add_sweeps(commands: Any) -> Parser:
    sweeps: Parser = commands.add_parser(
        "sweeps",
        help="train with K sweeps over the depth, run with K': accuracy and latency",
        description="Train one network on digits with K sweeps over its depth, for several K, and run each with every "
        "K'.",
    )
    _add_training(sweeps, "7")
    _add_place(sweeps, "runs/sweeps-1")
    return sweeps


def _add_training(parser: Parser, epochs: str) -> None:
    parser.add_argument("--epochs", type=count, help=f"passes over the training part (default: {epochs})")
    parser.add_argument("--seeds", type=count, default=5, help="how many seeds: 0, 1, …; the same for each network")


def _add_place(parser: Parser, first: str) -> None:
    parser.add_argument(
        "--out", type=Path, help=f"folder of the run, new or empty (default: the first free of {first}, …)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto: the GPU where there is one")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="resume a run that was killed or interrupted, or redo what failed in it (default: a new run)",
    )
