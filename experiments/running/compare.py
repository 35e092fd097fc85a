"""The main job: train every reading of the methods on one task and set them side by side."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..contestants import CONTESTANTS, named
from ..contestants.matching import matched_dials
from ..contestants.terms import TERMS, Terms, parameters
from ..failures import Failure, Failures
from ..reporting.comparison import Comparison, Row, Run
from ..reporting.report import write_report
from ..reporting.table import print_table, terminal
from ..tasks import TASKS, Source, Task
from ..training.device import chosen_device
from ..training.precision import check_precision
from ..training.shares import check_divides
from ..training.team import Team, joined
from ..training.train import check_strategy
from .circumstances import circumstances, command, place
from .folder import run_folder, tell_the_end, write_results, write_settings
from .trials import Trials


def compare(
    task: str,
    *,
    models: str,
    match: str,
    epochs: int | None,
    seeds: int,
    out: Path | None,
    device: str,
    source: Source,
    precision: str,
    strategy: str,
    resume: Path | None,
) -> list[Failure]:
    """Train, measure, report; returns what failed. All arguments are checked before anything is written.

    What is known is written before the next thing starts, and what fails costs nothing else. Where a launcher has
    started several processes, each calls it: all train, the leading one does all else.
    """
    device = chosen_device(device)
    check_precision(precision, device)
    with joined(device, strategy) as team, ExitStack() as stack:
        console = terminal(quiet=not team.leads)
        failures = Failures(lambda line: console.print(f"    {line}", highlight=False, markup=False))
        terms = TERMS[match]
        started = time.perf_counter()
        data = _data(task, source, team)
        check_divides(data, team)
        check_strategy(data, team)
        contestants = CONTESTANTS[task](data)
        usual = [name for name, contestant in contestants.items() if contestant.usual]
        names = usual if models == "all" else named(models, contestants)
        alike = _alike(terms, [contestants[name].fixed for name in names])
        epochs = data.epochs if epochs is None else epochs
        folder, final = team.first(
            lambda: stack.enter_context(run_folder(out, "compare", failures, name=task, resume=resume))
        )
        given: dict[str, Any] = {
            "command": "compare",
            "task": task,
            "models": models,
            "match": match,
            "epochs": epochs,
            "seeds": seeds,
        }
        given |= {"device": device, "devices": team.size // team.nodes, "nodes": team.nodes}
        given |= {"precision": precision, "strategy": strategy}
        if team.leads:
            data_folder = None if source.data is None else str(Path(source.data).resolve())
            write_settings(folder, {**given, "data": data_folder})
        console.print(
            f"[bold]{task}[/]: {data.description}; {_count(len(names), 'network')}, {alike}, "
            f"{_count(epochs, 'epoch')}, {_count(seeds, 'seed')}, on {place(device, team, precision)}",
            highlight=False,
        )
        dials = team.first(lambda: matched_dials(contestants, names, terms, data, failures))
        trials = Trials(data, epochs, device, precision, team, folder, resume is not None, console, failures, started)
        settings: dict[str, Any] = {
            "command": command(given, source),
            "terms": alike,
            "epochs": epochs,
            "seeds": list(range(seeds)),
            **circumstances(device),
        }
        runs: dict[str, list[Run]] = {name: [] for name in names}
        for number, name in enumerate(names, start=1):
            contestant = contestants[name]
            for seed in range(seeds):
                console.print(
                    f"({number}/{len(names)}) [bold]{name}[/], {contestant.description}, seed {seed}", highlight=False
                )
                run = trials.run(name, contestant, dials[name], seed) if name in dials else None
                runs[name] += [] if run is None else [run]
                if team.leads:
                    rows = [
                        Row(name, contestants[name], parameters(found[0].network), dials[name], found)
                        for name, found in runs.items()
                        if found
                    ]
                    missing = [name for name, found in runs.items() if not found]
                    settings["seconds"] = trials.seconds
                    comparison = Comparison(data, rows, settings, missing, failures.found)
                    write_results(folder, comparison.to_dict())
        if team.leads:
            failures.attempt("the table", lambda: print_table(comparison, console))
            write_report(comparison, folder, failures)
            if failures.found:
                write_results(folder, comparison.to_dict())
    if not team.leads:
        return []  # the leading process speaks for all, also with its exit code
    tell_the_end(final, "report.html", "report", "compare", failures, console)
    return failures.found


def _data(task: str, source: Source, team: Team) -> Task:
    """The task; where data are to be fetched, the leading process fetches them for all."""
    if source.download and team.size > 1:
        team.first(lambda: bool(TASKS[task](source)))
        source = replace(source, download=False)
    return TASKS[task](source)


def _alike(terms: Terms, fixed: list[bool]) -> str:
    """What the networks have in common, in words."""
    if all(fixed):
        return "sizes of their own"
    return terms.description + (", but for those of one size" if any(fixed) else "")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
