"""The main job: train every reading of the methods on one task and set them side by side."""

from __future__ import annotations

import os
import platform
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .device import chosen_device
from .diagnosis import ROWS, Diagnosis, diagnosed
from .families import FAMILIES, Contestants, named
from .folder import run_folder, write_results, write_settings
from .measure import measure
from .precision import check_precision
from .report import write_report
from .results import Comparison, Row, Run
from .shares import check_divides
from .table import print_table, terminal
from .tasks import TASKS, Source, Task
from .team import Team, joined
from .terms import TERMS, Terms, matched_dial, parameters
from .training import Training, apart, check_strategy, train
from .unfinished import keep, kept


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
            f"{_count(epochs, 'epoch')}, {_count(seeds, 'seed')}, on {_place(device, team, precision)}",
            highlight=False,
        )
        teach = partial(
            train,
            epochs=epochs,
            device=device,
            folder=folder,
            team=team,
            precision=precision,
            resume=resume is not None,
        )
        dials = team.first(lambda: _dials(contestants, names, terms, data))
        rows = []
        for number, name in enumerate(names, start=1):
            contestant = contestants[name]
            lesson = replace(data, learning_rate=contestant.learning_rate or data.learning_rate)
            runs = []
            for seed in range(seeds):
                console.print(
                    f"({number}/{len(names)}) [bold]{name}[/], {contestant.description}, seed {seed}", highlight=False
                )
                torch.manual_seed(seed)
                network = contestant.build(dials[name])
                before = kept(folder, name, seed, network)
                if before is None:
                    training = Training([], [])  # for what has nothing to learn
                    if parameters(network):
                        if apart(network, team, device):
                            console.print("    its batch statistics are of each process's share", highlight=False)
                        training = teach(network, lesson, seed=seed, name=name)
                    if not team.leads:
                        continue
                    measurement = measure(network, data, device)
                    diagnosis = None
                    if seed == 0 and measurement.solutions:
                        diagnosis = diagnosed(network, data.sample(ROWS)[0].to(device))
                    run = Run(seed, training, measurement, network.cpu(), diagnosis)
                    keep(folder, name, run, time.perf_counter() - started)
                else:
                    run, seconds = before
                    started = min(started, time.perf_counter() - seconds)  # what was spent before counts
                runs.append(run)
                score = data.goal.show(run.measurement.score)
                console.print(f"    test {data.goal.heading}: {score}", highlight=False)
                if run.diagnosis:
                    console.print(f"    diagnosis: {_found(run.diagnosis)}", highlight=False)
            if team.leads:
                rows.append(Row(name, contestant, parameters(runs[0].network), dials[name], runs))
        if team.leads:
            settings = {
                "command": _command(given, source),
                "terms": alike,
                "epochs": epochs,
                "seeds": list(range(seeds)),
                "seconds": time.perf_counter() - started,
            }
            comparison = Comparison(data, rows, {**settings, **_circumstances(device)})
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


def _dials(contestants: Contestants, names: list[str], terms: Terms, data: Task) -> dict[str, int]:
    """The size of each contestant under these terms."""
    dials = {name: contestants[name].dial for name in names}
    inputs, _ = data.sample(16)
    targets: dict[str, float] = {}
    for name in names:
        contestant = contestants[name]
        if terms.cost is None or contestant.fixed:
            continue
        if contestant.baseline not in targets:
            torch.manual_seed(0)
            baseline = contestants[contestant.baseline].build(contestant.dial)
            targets[contestant.baseline] = terms.cost(baseline.eval(), inputs)
        target = targets[contestant.baseline]
        dials[name] = matched_dial(contestant.build, target, terms.cost, inputs, terms.tolerance)
    return dials


def _found(diagnosis: Diagnosis) -> str:
    return ", ".join([*diagnosis.merged(), *diagnosis.failures]) or "nothing found"


def _command(given: dict[str, Any], source: Source) -> str:
    options = [f"--{name} {given[name]}" for name in ("models", "match", "epochs", "seeds", "device")]
    usual = {"devices": 1, "nodes": 1, "precision": "32", "strategy": "ddp"}
    options += [f"--{name} {given[name]}" for name, value in usual.items() if given[name] != value]
    if source.data is not None:
        options.append("--data DIR" + " --download" * source.download)  # whose folder is not said
    return " ".join(["implicit compare", given["task"], *options])


def _place(device: str, team: Team, precision: str) -> str:
    together = f"{team.size} processes ({team.strategy}) on " if team.size > 1 else ""
    return together + device + (f", trained in {precision}" if precision != "32" else "")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _circumstances(device: str) -> dict[str, Any]:
    """Versions and machine, without names of persons or hosts."""
    packages = ("torch", "numpy", "lightning", "torchmetrics", "scikit-learn")
    return {
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "machine": {
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
