"""One network from one seed: trained, measured, diagnosed, and kept in case the comparison is cut short."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from .diagnosis import ROWS, Diagnosis, diagnosed
from .families import Contestant
from .measure import measure
from .results import Run
from .tasks import Task
from .team import Team
from .terms import parameters
from .training import Training, apart, train
from .unfinished import keep, kept


@dataclass
class Trials:
    """The trials of one comparison. What an earlier, broken run has finished is read, not done again."""

    data: Task
    epochs: int
    device: str
    precision: str
    team: Team
    folder: Path
    resume: bool
    console: Console
    started: float
    """Reading of the clock; put back by what earlier runs have spent."""

    @property
    def seconds(self) -> float:
        """What the comparison has taken so far, in all its runs."""
        return time.perf_counter() - self.started

    def run(self, name: str, contestant: Contestant, dial: int, seed: int) -> Run | None:
        """What the contestant comes to; every process of a team takes part, and the leading one is told."""
        torch.manual_seed(seed)
        network = contestant.build(dial)
        before = kept(self.folder, name, seed, network)
        if before is not None:
            run, seconds = before
            self.started = min(self.started, time.perf_counter() - seconds)
        else:
            training = Training([], [])  # for what has nothing to learn
            if parameters(network):
                if apart(network, self.team, self.device):
                    self.console.print("    its batch statistics are of each process's share", highlight=False)
                training = train(
                    network,
                    replace(self.data, learning_rate=contestant.learning_rate or self.data.learning_rate),
                    epochs=self.epochs,
                    seed=seed,
                    device=self.device,
                    folder=self.folder,
                    name=name,
                    team=self.team,
                    precision=self.precision,
                    resume=self.resume,
                )
            if not self.team.leads:
                return None
            measurement = measure(network, self.data, self.device)
            diagnosis = None
            if seed == 0 and measurement.solutions:
                diagnosis = diagnosed(network, self.data.sample(ROWS)[0].to(self.device))
            run = Run(seed, training, measurement, network.cpu(), diagnosis)
            keep(self.folder, name, run, self.seconds)
        goal = self.data.goal
        self.console.print(f"    test {goal.heading}: {goal.show(run.measurement.score)}", highlight=False)
        if run.diagnosis:
            self.console.print(f"    diagnosis: {_found(run.diagnosis)}", highlight=False)
        return run


def _found(diagnosis: Diagnosis) -> str:
    return ", ".join([*diagnosis.merged(), *diagnosis.failures]) or "nothing found"
