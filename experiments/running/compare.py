"""The main job: train networks on one task and set them side by side."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.markup import escape

from ..contestants.contestant import Contestants
from ..contestants.matching import matched_sizes
from ..contestants.own import Entry, compared_with, entered
from ..contestants.terms import TERMS, Terms, in_common, parameters
from ..errors import InputError
from ..failures import Failures
from ..reporting.comparison import Comparison, Row, Run
from ..reporting.report import write_report
from ..reporting.table import print_table, terminal
from ..tasks.task import Task
from ..training.device import chosen_device, data_on_the_processor
from ..training.precision import PRECISIONS, check_precision
from ..training.search import Search, held_back
from ..training.shares import check_divides, check_strategy
from ..training.team import Team, joined
from .circumstances import circumstances, place
from .folder import PYTHON, run_folder, tell_the_end, write_results
from .settings import check_alike, read_settings, write_settings
from .trials import Trials

WANTED = "{name: function of the task that makes a network}"


def compare(
    task: Task,
    contestants: Mapping[str, Entry],
    *,
    baseline: str | None = None,
    match: str = "parameters",
    seeds: int = 5,
    epochs: int | None = None,
    search: bool = True,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: str = "32",
    strategy: str = "ddp",
    resume: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Train networks on one task from the same seeds, measure and diagnose them, and write a report.

    Use it in a program or a notebook for data and networks of your own; `implicit compare MODULE:FUNCTION` is the same
    on the command line. A failure does not stop the rest, and is listed in `Comparison.failures`. A program started by
    torchrun trains with all its processes; the comparison is complete in the leading one and empty in the others.

    Args:
        task: data, goal and loss.
        contestants: name → a function of the task that makes a new network; a function of the task and a `size`,
            which is then chosen so that the network matches the baseline; or a `Contestant`, such as those of
            `contestants_for(task)`. A network maps inputs (batch, …) to what the goal's loss takes.
        baseline: the name that all are compared with; None: that of each contestant, or the first.
        match: `parameters`, `flops` or `shape`: what the contestants with a size have in common with the baseline.
        seeds: how many seeds: 0, 1, …; with fewer than two, nothing can be said about differences.
        epochs: passes over the training part; None: the task's.
        search: whether to choose each network's learning rate, on data held back from training (`Task.validation`):
            three to five rates around the task's are tried from seed 0. False: all have the task's.
        out: folder of the run, new or empty; None: the first free of `runs/NAME-1`, …
        device: `cpu`, `cuda` or `auto`, the GPU where there is one.
        precision: arithmetic of the layers in training: `32`, `bf16` or, on GPUs, `16`.
        strategy: for several processes: `ddp`, or `fsdp`, which splits the weights.
        resume: the folder of a run that was interrupted or has failures, to be resumed with the same arguments.

    `InputError` for arguments that cannot be used, before anything is trained.
    """
    for name, value, known in (("match", match, TERMS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise InputError(f"{name}={value!r}: choose from {', '.join(known)}")
    if strategy not in ("ddp", "fsdp"):
        raise InputError(f"strategy={strategy!r}: choose from ddp, fsdp")
    epochs = task.epochs if epochs is None else epochs
    for name, number in (("seeds", seeds), ("epochs", epochs)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise InputError(f"{name}={number!r} is not an integer of at least 1")
    if not isinstance(contestants, Mapping) or not all(isinstance(name, str) for name in contestants):
        raise InputError(f"contestants={contestants!r:.200}: pass {WANTED}")
    if not contestants:
        raise InputError(f"there is nothing to compare: pass {WANTED}")
    entries = {name: entered(name, entry, task) for name, entry in contestants.items()}
    given: dict[str, Any] = {"task": task.name, "contestants": list(entries), "baseline": baseline, "match": match}
    given |= {"epochs": epochs, "seeds": seeds, "search": search, "precision": precision, "strategy": strategy}
    given |= {name: getattr(task, name) for name in ("batch", "learning_rate", "weight_decay")}
    if resume is not None:
        if out is not None:
            raise InputError("resume already names the folder of the run: do not pass out")
        check_alike(given, read_settings(Path(resume)))
    named = {"seeds": seeds, "epochs": epochs, "search": search, "baseline": baseline, "match": match}
    shown = ", ".join(f"{name}={value!r}" for name, value in named.items())
    with data_on_the_processor(), joined(chosen_device(device), strategy) as team:
        return compared(
            task,
            entries,
            list(entries),
            baseline=baseline,
            terms=TERMS[match],
            epochs=epochs,
            seeds=seeds,
            search=search,
            out=None if out is None else Path(out),
            device=chosen_device(device),
            precision=precision,
            team=team,
            resume=None if resume is None else Path(resume),
            recorded={"command": PYTHON, **given},
            command=f"experiments.compare(task, {{{', '.join(f'{name!r}: …' for name in entries)}}}, {shown})",
        )


def compared(
    task: Task,
    contestants: Contestants,
    names: list[str],
    *,
    baseline: str | None,
    terms: Terms,
    epochs: int,
    seeds: int,
    search: bool,
    out: Path | None,
    device: str,
    precision: str,
    team: Team,
    resume: Path | None,
    recorded: dict[str, Any],
    command: str,
) -> Comparison:
    """Train, measure and report, writing each result before the next step starts.

    All arguments are checked before anything is written. Every process of a team calls this function: all train, and
    the leading one does the rest.

    Args:
        contestants: all that can be a baseline.
        names: those that take part.
        recorded: the settings that the run was started with, kept for resuming it.
        command: how the comparison was started, for the report.
    """
    with ExitStack() as stack:
        console = terminal(quiet=not team.leads)
        failures = Failures(lambda line: console.print(f"    {line}", highlight=False, markup=False))
        started = time.perf_counter()
        check_precision(precision, device)
        check_divides(task, team)
        if search:
            check_divides(held_back(task), team)
        check_strategy(task, team)
        contestants = compared_with(baseline, contestants, names)
        alike = in_common(terms, [contestants[name].fixed for name in names])
        folder, final = team.first(
            lambda: stack.enter_context(run_folder(out, recorded["command"], failures, name=task.name, resume=resume))
        )
        if team.leads:
            where = {"device": device, "devices": team.size // team.nodes, "nodes": team.nodes}
            write_settings(folder, {**recorded, **where})
        console.print(
            f"[bold]{escape(task.name)}[/]: {escape(task.description + '; ' * bool(task.description))}"
            f"{_count(len(names), 'network')}, {alike}, {_count(epochs, 'epoch')}, {_count(seeds, 'seed')}, "
            f"on {place(device, team, precision)}",
            highlight=False,
        )
        sizes = team.first(lambda: matched_sizes(contestants, names, terms, task, failures))
        trials = Trials(task, epochs, device, precision, team, folder, resume is not None, console, failures, started)
        sizes = team.first(lambda: {name: n for name, n in sizes.items() if trials.fits(name, contestants[name], n)})
        settings = {"command": command, "terms": alike, "epochs": epochs, "seeds": list(range(seeds)), "search": search}
        settings["training"] = trained_by(task)
        settings |= circumstances(device)
        runs: dict[str, list[Run]] = {name: [] for name in names}
        rates: dict[str, tuple[float, Search | None]] = {}
        # it stays empty in a process that does not lead: the leading one reports for all, also by its exit code
        comparison = Comparison(task, [], settings, names, failures.found if team.leads else [])
        words = {
            name: f"({number}/{len(names)}) [bold]{escape(name)}[/], {escape(contestants[name].description)}"
            for number, name in enumerate(names, start=1)
        }
        for name in names:
            found = None
            if search and name in sizes:
                console.print(f"{words[name]}, search for its learning rate", highlight=False)
                found = trials.search(name, contestants[name], sizes[name])
            rates[name] = found.chosen if found else contestants[name].learning_rate or task.learning_rate, found
        # seed by seed, so that passing load on the machine does not slow a single network
        for seed, name in itertools.product(range(seeds), names):
            console.print(f"{words[name]}, seed {seed}", highlight=False)
            run = trials.run(name, contestants[name], sizes[name], seed, rates[name][0]) if name in sizes else None
            runs[name] += [] if run is None else [run]
            if team.leads:
                rows = [
                    Row(name, contestants[name], parameters(done[0].network), sizes[name], done, *rates[name])
                    for name, done in runs.items()
                    if done
                ]
                missing = [name for name, done in runs.items() if not done]
                settings["seconds"] = trials.seconds
                comparison = Comparison(task, rows, settings, missing, failures.found)
                write_results(folder, comparison.to_dict())
        if team.leads:
            failures.attempt("the table", lambda: print_table(comparison, console))
            write_report(comparison, folder, failures)
            if failures.found:
                write_results(folder, comparison.to_dict())
    if team.leads:  # it reports for all
        tell_the_end(final, "report.html", "report", recorded["command"], failures, console)
    return comparison


def trained_by(task: Task) -> str:
    """How networks are trained, in words."""
    optimizer = getattr(task.optimizer, "__name__", str(task.optimizer))
    averaged = "" if task.averaging is None else f", weights averaged with decay {task.averaging:g}"
    return f"{optimizer}, batches of {task.batch}, weight decay {task.weight_decay:g}, one-cycle schedule{averaged}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
