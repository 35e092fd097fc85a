"""The main job: train every reading of the methods on one task and set them side by side."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .device import chosen_device
from .diagnosis import ROWS, Diagnosis, diagnosed
from .families import FAMILIES, Contestants, named
from .folder import run_folder, write_results
from .measure import measure
from .report import write_report
from .results import Comparison, Row, Run
from .table import print_table, terminal
from .tasks import TASKS, Source, Task
from .terms import TERMS, Terms, matched_dial, parameters
from .training import Training, train


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
) -> Path:
    """Train and measure; returns the path of the report. All arguments are checked before anything is written."""
    console = terminal()
    device = chosen_device(device)
    terms = TERMS[match]
    started = time.perf_counter()
    data = TASKS[task](source)
    contestants = FAMILIES[task](data)
    usual = [name for name, contestant in contestants.items() if contestant.usual]
    names = usual if models == "all" else named(models, contestants)
    alike = _alike(terms, [contestants[name].fixed for name in names])
    epochs = data.epochs if epochs is None else epochs
    with run_folder(out, task) as (folder, final):
        console.print(
            f"[bold]{task}[/]: {data.description}; {_count(len(names), 'network')}, {alike}, "
            f"{_count(epochs, 'epoch')}, {_count(seeds, 'seed')}, on {device}",
            highlight=False,
        )
        dials = _dials(contestants, names, terms, data)
        rows = []
        for number, name in enumerate(names, start=1):
            contestant = contestants[name]
            rate = contestant.learning_rate or data.learning_rate
            lesson = replace(data, learning_rate=rate)
            runs, diagnosis = [], None
            for seed in range(seeds):
                console.print(
                    f"({number}/{len(names)}) [bold]{name}[/], {contestant.description}, seed {seed}", highlight=False
                )
                torch.manual_seed(seed)
                network = contestant.build(dials[name])
                training = Training([], [])  # for what has nothing to learn
                if parameters(network):
                    training = train(network, lesson, epochs=epochs, seed=seed, device=device, folder=folder, name=name)
                measurement = measure(network, data, device)
                console.print(f"    test {data.goal.heading}: {data.goal.show(measurement.score)}", highlight=False)
                if seed == 0 and measurement.solutions:
                    diagnosis = diagnosed(network, data.sample(ROWS)[0].to(device))
                    console.print(f"    diagnosis: {_found(diagnosis)}", highlight=False)
                runs.append(Run(seed, training, measurement, network.cpu()))
            rows.append(Row(name, contestant, parameters(runs[0].network), dials[name], runs, diagnosis))
        settings = {
            "command": _command(task, models, match, epochs, seeds, device, source),
            "terms": alike,
            "epochs": epochs,
            "seeds": list(range(seeds)),
            "seconds": time.perf_counter() - started,
        }
        comparison = Comparison(data, rows, {**settings, **_circumstances(device)})
        write_results(folder, comparison.to_dict())
        write_report(comparison, folder)
    print_table(comparison, console)
    console.print(f"report: {final / 'report.html'}", soft_wrap=True, highlight=False)
    return final / "report.html"


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


def _command(task: str, models: str, match: str, epochs: int, seeds: int, device: str, source: Source) -> str:
    data = "" if source.data is None else f" --data DIR{' --download' * source.download}"  # whose folder is not said
    return (
        f"implicit compare {task} --models {models} --match {match} --epochs {epochs} --seeds {seeds} --device {device}"
        + data
    )


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
