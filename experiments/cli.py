"""The command line: `implicit COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from .commands.arguments import shipped
from .commands.launch import launch
from .commands.options import parser
from .errors import InputError, Interrupted, TrainingError, require
from .running.settings import read_settings, settled
from .training.launched import launched

if TYPE_CHECKING:
    from .failures import Failure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    It is 0 on success, 1 if something failed, 2 for bad input, 130 on an interruption, 141 on a broken pipe.
    """
    code = _answered(list(sys.argv[1:] if arguments is None else arguments))
    if code and launched():
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)  # at once: the other processes may be waiting for this one, and notice its end
    return code


def _answered(given: list[str]) -> int:
    try:
        code = _run(given)
        sys.stdout.flush()
    except InputError as error:
        _say(str(error))
        return 2
    except TrainingError as error:
        print(f"implicit: {error}", file=sys.stderr)  # each process reports its own
        return 1
    except BrokenPipeError:
        # the reader of the output has gone: nothing more can be printed, and nothing half-written is left
        sys.stdout = None  # type: ignore[assignment]
        return 141
    except Interrupted as end:
        _say(f"interrupted; {end}")
        return 130
    except KeyboardInterrupt as end:
        before: BaseException | None = end.__context__  # it may come while another one, or an error, is told of
        while before is not None and not isinstance(before, Interrupted):
            before = before.__context__
        _say(f"interrupted; {before or 'nothing was kept'}" if before or not end.__context__ else "interrupted")
        return 130
    return code


def _run(given: list[str]) -> int:
    try:
        options = parser().parse_args([shipped(argument) for argument in given])
    except (UnicodeDecodeError, RecursionError) as error:  # a recipe that is not text, or that includes itself
        raise InputError(f"a recipe cannot be read: {error}") from error
    finally:
        sys.stdout.flush()  # of --help: a broken pipe is noticed here
    run = {"compare": _compare, "universality": _alone, "depth": _alone, "sweeps": _alone}[options.command]
    for name in ("SIGTERM", "SIGHUP"):  # a request to end is an interruption too; Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    return run(options, given)


def _say(message: str) -> None:
    """Print a message to stderr; of several processes, only the leading one does."""
    if not launched() or os.environ["RANK"] == "0":
        print(f"implicit: {message}", file=sys.stderr)


def _settled(options: argparse.Namespace, given: list[str]) -> tuple[dict[str, Any], set[str]]:
    """The command's settings, those of a resumed run included, and the names of the options that were given."""
    chosen = vars(options)
    plain = parser(defaults=False).parse_args([shipped(argument) for argument in given])
    typed = {name for name, value in vars(plain).items() if value is not None}
    if chosen["resume"] is not None:
        chosen = settled(chosen, typed - {"command", "resume"}, read_settings(chosen["resume"]))
    return chosen, typed


def _ended(failures: list[Failure]) -> int:
    """The exit code."""
    return 1 if failures else 0


def _compare(options: argparse.Namespace, given: list[str]) -> int:
    if options.list:
        from .commands.listing import listing

        print(listing(options.task, options.data))
        return 0
    chosen, typed = _settled(options, given)
    if "task" not in typed and "resume" not in typed:
        raise InputError("compare needs a task, or --resume RUN; see implicit compare --list")
    devices, nodes = chosen["devices"], chosen["nodes"]
    if not launched() and devices * nodes > 1:
        return launch(given, devices, nodes)
    if launched() and typed & {"devices", "nodes"} and devices * nodes != int(os.environ["WORLD_SIZE"]):
        size = os.environ["WORLD_SIZE"]
        raise InputError(
            f"--devices {devices} --nodes {nodes} do not match the {size} processes launched: leave them out"
        )
    _require()
    from .commands.compare import compare  # late: the training libraries take seconds to import, too long for --help

    return _ended(compare(chosen, given))


def _require() -> None:
    """Raise `InputError` unless the packages that every command uses can be imported."""
    require("plots", "matplotlib")
    require("train", "torchmetrics", "sklearn", "jinja2", "rich", "lightning")


def _alone(options: argparse.Namespace, given: list[str]) -> int:
    """Run a command that uses a single process."""
    if launched():
        raise InputError(f"{options.command} runs in one process: start it without torchrun")
    chosen, _ = _settled(options, given)
    _require()
    from .training.device import data_on_the_processor

    module = importlib.import_module(f".commands.{options.command}", __package__)
    run: Callable[..., list[Failure]] = getattr(module, options.command)
    with data_on_the_processor():
        return _ended(run(**{name: value for name, value in chosen.items() if name != "command"}))


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
