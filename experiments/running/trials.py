"""One network from one seed: trained, measured, diagnosed, and kept in case the comparison is cut short."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from ..contestants.contestant import Contestant
from ..contestants.terms import parameters
from ..failures import Failures
from ..measuring.diagnosis import ROWS, Diagnosis, diagnosed
from ..measuring.measure import measure
from ..names import file_name
from ..reporting.comparison import Run
from ..tasks.task import Task
from ..training.team import Team
from ..training.train import Training, apart, train
from .unfinished import keep, kept


@dataclass
class Trials:
    """The trials of one comparison. What an earlier, broken run has finished is read, not done again.

    Whatever fails in a trial is noted, and costs no other trial.
    """

    data: Task
    epochs: int
    device: str
    precision: str
    team: Team
    folder: Path
    resume: bool
    console: Console
    failures: Failures
    started: float
    """Reading of the clock; put back by what earlier runs have spent."""

    @property
    def seconds(self) -> float:
        """What the comparison has taken so far, in all its runs."""
        return time.perf_counter() - self.started

    def run(self, name: str, contestant: Contestant, size: int, seed: int) -> Run | None:
        """What the contestant comes to, None where it cannot be trained or measured.

        Every process of a team takes part, and the leading one is told.
        """
        failures = self.failures.within(f"{name}, seed {seed}", f"{file_name(name)}/seed-{seed}")
        torch.manual_seed(seed)
        network = failures.attempt("the making", lambda: contestant.build(size))
        if network is None:
            return None
        before = kept(self.folder, name, seed, network)
        if before is not None:
            run, seconds, looked_at = before
            self.started = min(self.started, time.perf_counter() - seconds)
        else:
            training = failures.attempt("the training", lambda: self._trained(name, contestant, network, seed))
            if training is None or not self.team.leads:
                return None
            measurement = failures.attempt(
                "the measurement", lambda: measure(network, self.data, self.device, failures)
            )
            if measurement is None:
                return None
            run, looked_at = Run(seed, training, measurement, network), False
        if not self.team.leads:
            return None
        whole = not failures.found
        if not looked_at:
            if seed == 0 and run.measurement.solutions:
                found = failures.attempt("the whole diagnosis", lambda: self._diagnosed(network, failures))
                run = replace(run, diagnosis=found)
            network.cpu()
            if whole:  # what could not be measured is measured again when the run goes on
                keep(self.folder, name, run, self.seconds, diagnosed=not failures.found)
        goal, score = self.data.goal, run.measurement.score
        shown = "not known" if score is None else goal.show(score)
        self.console.print(f"    test {goal.heading}: {shown}", highlight=False)
        if run.diagnosis:
            self.console.print(f"    diagnosis: {_found(run.diagnosis)}", highlight=False)
        return run

    def _trained(self, name: str, contestant: Contestant, network: nn.Module, seed: int) -> Training:
        if not parameters(network):
            return Training([], [])  # there is nothing to learn
        if apart(network, self.team, self.device):
            self.console.print("    its batch statistics are of each process's share", highlight=False)
        return train(
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

    def _diagnosed(self, network: nn.Module, failures: Failures) -> Diagnosis:
        return diagnosed(network.to(self.device), self.data.sample(ROWS)[0].to(self.device), failures)


def _found(diagnosis: Diagnosis) -> str:
    return ", ".join([*diagnosis.merged(), *diagnosis.failures]) or "nothing found"
