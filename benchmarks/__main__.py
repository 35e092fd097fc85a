"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def _solvers(quick: bool, folder: Path) -> None:
    from .solvers import compare  # here: its imports take seconds, which a wrong name should not

    compare(quick, folder)


def _gradients(quick: bool, folder: Path) -> None:
    from .gradients import compare

    compare(quick, folder)


def _parallel(quick: bool, folder: Path) -> None:
    from .parallel import compare

    compare(quick, folder)


def _memory(quick: bool, folder: Path) -> None:
    from .memory import compare

    compare(quick, folder)


def _training(quick: bool, folder: Path) -> None:
    from .training import compare

    compare(quick, folder)


def _gpu(quick: bool, folder: Path) -> None:
    from .gpu import compare

    compare(quick, folder)


BENCHMARKS: dict[str, tuple[str, Callable[[bool, Path], None]]] = {
    "solvers": ("overhead, evaluations, frugality, honest failure, growth with batch and state", _solvers),
    "gradients": ("errors, products, second derivatives and seconds", _gradients),
    "parallel": ("branches batched and in a loop, time against depth, and along sequences", _parallel),
    "memory": ("peaks of solvers and gradients against steps", _memory),
    "training": ("an equilibrium classifier of digits, from the same weights on the same batches", _training),
    "gpu": ("on a CUDA device: a step of a solver, eager and captured, and a training step", _gpu),
}
"""Name → (what it measures, its entry point)."""


def main() -> int:
    """Run one benchmark; returns 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements beside the peers.")
    parser.add_argument("name", nargs="?", help="; ".join(f"{name}: {what}" for name, (what, _) in BENCHMARKS.items()))
    parser.add_argument("--quick", action="store_true", help="few repeats, small tables: does it run, in a minute")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of JSON file and figure")
    arguments = parser.parse_args()
    if arguments.name is None:
        print("python -m benchmarks NAME: name one of", file=sys.stderr)
        print(*(f"  {name}: {what}" for name, (what, _) in BENCHMARKS.items()), sep="\n", file=sys.stderr)
        return 2
    if arguments.name not in BENCHMARKS:
        print(f"no benchmark {arguments.name!r}: name one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"--out {arguments.out} cannot be used: {error.strerror}", file=sys.stderr)
        return 2
    BENCHMARKS[arguments.name][1](arguments.quick, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
