"""One network from one seed: trained, measured, diagnosed, and kept in case the comparison is cut short."""

from __future__ import annotations

import math
import shutil
import time
import warnings
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
from ..training.search import Search, held_back, search
from ..training.team import Team
from ..training.train import Training, apart, checkpoint, train
from .unfinished import keep, kept, read, write

ELAPSED = "elapsed"
"""Name under which the time that a run has taken is kept."""


@dataclass
class Trials:
    """The trials of one comparison; what an earlier, interrupted run finished is read, not repeated.

    A failure in a trial is noted and does not affect the other trials.
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
    """Reading of the clock at the start, set back by the seconds that earlier runs took."""

    def __post_init__(self) -> None:
        before = read(self.folder, ELAPSED) if self.resume else None
        if before:
            self.started -= before["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds that the comparison has taken so far, earlier runs included."""
        return time.perf_counter() - self.started

    def search(self, name: str, contestant: Contestant, size: int) -> Search | None:
        """The learning rates tried for the contestant, from seed 0; None where it has its own or has nothing to learn.

        A training that fails only rules out its rate: if all fail, the runs report it.
        """
        task, failures = held_back(self.data), Failures(self.failures.tell)
        failures.folder = self.folder

        def made() -> nn.Module:
            torch.manual_seed(0)
            return contestant.build(size)

        def trained(rate: float) -> Training:
            return self._trained(f"{name}-at-{rate:.2g}", task, rate, made(), 0, part="validation")

        def attempt(rate: float) -> tuple[float, float]:
            place = f"{file_name(name)}/search-{rate:.2g}"
            training = failures.within(f"{name} at {rate:.2g}", place).attempt("the training", lambda: trained(rate))
            last = training.curves[-1] if training else {}
            return self.team.first(lambda: (last.get("test_score", math.nan), last.get("test_loss", math.nan)))

        network = Failures().attempt("the making", made)
        if contestant.learning_rate is not None or network is None or not parameters(network):
            return None
        before = read(self.folder, f"{name}-search")
        found = Search(**before) if before else search(self.data.learning_rate, task.goal, attempt)
        if self.team.leads:
            write(self.folder, f"{name}-search", vars(found))
            for rate in found.scores:
                shutil.rmtree(checkpoint(self.folder, f"{name}-at-{rate:.2g}", 0).parent, ignore_errors=True)
        shown = ", ".join(f"{task.goal.show(score)} at {rate:.2g}" for rate, score in found.scores.items())
        self.console.print(
            f"    learning rate {found.chosen:.2g} chosen; {task.goal.heading} on held-back data: {shown}",
            highlight=False,
        )
        return found

    def fits(self, name: str, contestant: Contestant, size: int) -> bool:
        """Whether a new network takes the task's inputs, and the goal its outputs; tried before anything is trained."""

        def tried() -> bool:
            inputs, targets = (part.to(self.device) for part in self.data.sample(self.data.batch))
            torch.manual_seed(0)
            network = contestant.build(size).to(self.device).eval()
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # training will say what they say
                outputs = network(inputs)
                self.data.training_loss(outputs, targets)
                self.data.goal.metric().to(self.device).update(outputs, targets)
            return True

        return bool(self.failures.within(name, file_name(name)).attempt("the first evaluation", tried))

    def run(self, name: str, contestant: Contestant, size: int, seed: int, rate: float) -> Run | None:
        """Train the contestant at that learning rate and measure it; None if it cannot be trained or measured.

        Every process of a team takes part, but only the leading one gets the result.
        """
        failures = self.failures.within(f"{name}, seed {seed}", f"{file_name(name)}/seed-{seed}")
        torch.manual_seed(seed)
        network = failures.attempt("the making", lambda: contestant.build(size))
        if network is None:
            return None
        before = kept(self.folder, name, seed, network)
        if before is not None:
            run, looked_at = before
        else:
            training = failures.attempt("the training", lambda: self._trained(name, self.data, rate, network, seed))
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
            if whole:  # what could not be measured is measured again when the run is resumed
                keep(self.folder, name, run, diagnosed=not failures.found)
                write(self.folder, ELAPSED, {"seconds": self.seconds})
        goal, score = self.data.goal, run.measurement.score
        shown = "not known" if score is None else goal.show(score)
        self.console.print(f"    test {goal.heading}: {shown}", highlight=False)
        if run.diagnosis:
            self.console.print(f"    diagnosis: {_found(run.diagnosis)}", highlight=False)
        return run

    def _trained(
        self, name: str, task: Task, rate: float, network: nn.Module, seed: int, part: str = "test"
    ) -> Training:
        if not parameters(network):
            return Training([], [])  # there is nothing to learn
        if apart(network, self.team, self.device):
            self.console.print("    its batch statistics cover each process's share only", highlight=False)
        training = train(
            network,
            replace(task, learning_rate=rate),
            epochs=self.epochs,
            seed=seed,
            device=self.device,
            folder=self.folder,
            name=name,
            team=self.team,
            precision=self.precision,
            resume=self.resume,
            part=part,
        )
        if self.team.leads:
            write(self.folder, ELAPSED, {"seconds": self.seconds})
        return training

    def _diagnosed(self, network: nn.Module, failures: Failures) -> Diagnosis:
        return diagnosed(network.to(self.device), self.data.sample(ROWS)[0].to(self.device), failures)


def _found(diagnosis: Diagnosis) -> str:
    return ", ".join([*diagnosis.merged(), *diagnosis.failures]) or "nothing found"
