"""The main job: train every reading of the methods on one task and set them side by side."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from .circumstances import circumstances, command, place
from .device import chosen_device
from .families import FAMILIES, named
from .folder import run_folder, write_results, write_settings
from .matching import matched_dials
from .precision import check_precision
from .report import write_report
from .results import Comparison, Row
from .shares import check_divides
from .table import print_table, terminal
from .tasks import TASKS, Source, Task
from .team import Team, joined
from .terms import TERMS, Terms, parameters
from .training import check_strategy
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
) -> Path:
    """Train and measure; returns the path of the report. All arguments are checked before anything is written.

    Where a launcher has started several processes, each calls it: all train, the leading one does all else.
    """
    device = chosen_device(device)
    check_precision(precision, device)
    with joined(device, strategy) as team, ExitStack() as stack:
        console = terminal(quiet=not team.leads)
        terms = TERMS[match]
        started = time.perf_counter()
        data = _data(task, source, team)
        check_divides(data, team)
        check_strategy(data, team)
        contestants = FAMILIES[task](data)
        usual = [name for name, contestant in contestants.items() if contestant.usual]
        names = usual if models == "all" else named(models, contestants)
        alike = _alike(terms, [contestants[name].fixed for name in names])
        epochs = data.epochs if epochs is None else epochs
        folder, final = team.first(lambda: stack.enter_context(run_folder(out, task, resumable=True, resume=resume)))
        given: dict[str, Any] = {"task": task, "models": models, "match": match, "epochs": epochs, "seeds": seeds}
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
        dials = team.first(lambda: matched_dials(contestants, names, terms, data))
        trials = Trials(data, epochs, device, precision, team, folder, resume is not None, console, started)
        rows = []
        for number, name in enumerate(names, start=1):
            contestant, runs = contestants[name], []
            for seed in range(seeds):
                console.print(
                    f"({number}/{len(names)}) [bold]{name}[/], {contestant.description}, seed {seed}", highlight=False
                )
                runs.append(trials.run(name, contestant, dials[name], seed))
            finished = [run for run in runs if run is not None]
            if team.leads:
                rows.append(Row(name, contestant, parameters(finished[0].network), dials[name], finished))
        if team.leads:
            settings = {
                "command": command(given, source),
                "terms": alike,
                "epochs": epochs,
                "seeds": list(range(seeds)),
                "seconds": trials.seconds,
            }
            comparison = Comparison(data, rows, {**settings, **circumstances(device)})
            write_results(folder, comparison.to_dict())
            write_report(comparison, folder)
    if team.leads:
        print_table(comparison, console)
        console.print(f"report: {final / 'report.html'}", soft_wrap=True, highlight=False)
    return final / "report.html"


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
