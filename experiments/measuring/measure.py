"""What a trained network costs, and how its equilibria converge."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from implicit import ConvergenceWarning, record
from implicit.copies import untouched
from implicit.diagnostics import residual_quantiles
from solvers import Solution

from ..contestants.terms import flops as executed_flops
from ..failures import Failures
from ..tasks.goals import Classification, margins
from ..tasks.task import Task
from ..training.shares import TEST_BATCH
from .saved import saved_bytes

LATENCY_BATCHES = (1, 256)
DEPTHS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of steps after which a network that repeats a cell is scored, whatever it was trained for."""
LATENCY_RUNS, LATENCY_SECONDS = 9, 1.0
"""Largest number of timed passes, and the seconds after which no further pass starts."""


@dataclass(frozen=True)
class Measurement:
    """Figures of one trained network on the test part of its task; one that could not be found is None."""

    score: float | None
    """Score on the whole test part."""
    margin: float | None
    """Median first-order distance of test points to the decision boundary; None also unless vectors are classified."""
    flops: float | None
    """Matmul and convolution FLOPs executed per sample in a forward pass, the solver's own included."""
    forward_evaluations: float | None
    """Evaluations of cells per row, summed over the network's solves; 0 without solves."""
    backward_evaluations: float | None
    """The same for the backward solves, on the first 256 rows."""
    converged: float | None
    """Share of rows whose forward solves all converged; 1 without solves; None also if no solve has a tolerance."""
    latency: dict[int, float]
    """Median seconds of a forward pass, for each batch size at which it could be measured."""
    prefix_scores: list[float]
    """Test scores of the first 1 … B branches alone; empty: a network without branches, or not found."""
    depth_scores: dict[int, float]
    """Number of steps → test score after them; empty: a network that does not repeat a cell, or not found."""
    saved_bytes: int | None
    """Bytes that autograd keeps between the forward and backward pass of a training batch, parameters left out."""
    solutions: list[Solution] = field(repr=False)
    """The forward solves of the first test rows, without their values."""

    @cached_property
    def residual_quantiles(self) -> list[list[list[float]]]:
        """For each solve, the 10 %, 50 % and 90 % quantiles of the residuals at every step."""
        return [residual_quantiles(solution).tolist() for solution in self.solutions]

    def to_dict(self) -> dict[str, Any]:
        """The numbers, fit for JSON."""
        names = [entry.name for entry in fields(self) if entry.name != "solutions"]
        return {name: getattr(self, name) for name in (*names, "residual_quantiles")}


def measure(network: nn.Module, task: Task, device: str, failures: Failures) -> Measurement:
    """Measure a trained network, costs and solves on the first test rows; leaves it in evaluation mode.

    A figure that cannot be found is noted in `failures` and does not affect the others.
    """
    goal = task.goal
    inputs, targets = (part.to(device) for part in task.sample())
    network = network.to(device).eval()

    def forward() -> tuple[list[Solution], float]:
        with torch.no_grad(), record() as log:
            network(inputs)
        # counted in a pass of its own: a recorded loop evaluates its cell once more
        return [entry.solution for entry in log.forward], executed_flops(network, inputs)

    def backward() -> list[Solution]:
        with record() as log:
            loss = task.training_loss(network(inputs[:256]), targets[:256])
            if loss.requires_grad:  # there is something to learn
                loss.backward()
        return [entry.solution for entry in log.backward]

    def margin() -> float:
        return margins(network, inputs, targets).median().item()

    def saved() -> int:
        rows = min(task.batch, len(task.train))  # type: ignore[arg-type]
        batch = default_collate([task.train[row] for row in range(rows)])
        with untouched(network):  # training mode updates its batch statistics
            return saved_bytes(network, lambda: task.training_loss(network(batch[0].to(device)), batch[1].to(device)))

    def latency_at(size: int) -> float:
        return latency(network, _repeated(inputs, size))

    attempt = failures.attempt
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solves, flops = attempt("the forward pass", forward) or (None, None)
        adjoints = attempt("the backward pass", backward)
        network.zero_grad()
        vectors = isinstance(goal, Classification) and inputs.ndim == 2 and inputs.is_floating_point()
        times = {size: attempt(f"the latency at batch {size}", partial(latency_at, size)) for size in LATENCY_BATCHES}
        prefixes = None
        if isinstance(network, Branched):
            prefixes = attempt("the scores of its branches", partial(prefix_scores, network, task, device))
        depths = None
        if isinstance(network, Repeating):
            depths = attempt("the scores after other numbers of steps", partial(depth_scores, network, task, device))
        return Measurement(
            score=attempt("the score", lambda: score(network, task, device)),
            margin=attempt("the margin", margin) if vectors else None,
            flops=flops,
            forward_evaluations=None if solves is None else _mean_evaluations(solves),
            backward_evaluations=None if adjoints is None else _mean_evaluations(adjoints),
            converged=None if solves is None else _share_converged(solves),
            latency={size: seconds for size, seconds in times.items() if seconds is not None},
            prefix_scores=prefixes or [],
            depth_scores=depths or {},
            saved_bytes=attempt("the saved bytes", saved),
            solutions=solves or [],
        )


def score(network: nn.Module, task: Task, device: str) -> float:
    """The score on the whole test part, of a network in evaluation mode on that device."""
    (found,) = _scores(lambda x: [network(x)], task, device)
    return found


def _own_metric(task: Task, device: str) -> Any:
    """A metric that does not wait for other processes, which do not measure."""
    metric = task.goal.metric().to(device)
    metric.distributed_available_fn = lambda: False
    return metric


@runtime_checkable
class Branched(Protocol):
    """A network that is a sum of branches."""

    def prefixes(self, x: Tensor) -> Tensor:
        """(branches, batch, …): the outputs of the first 1 … B branches."""
        ...


def prefix_scores(network: Branched, task: Task, device: str) -> list[float]:
    """The scores of the first 1 … B branches on the whole test part, of a network in evaluation mode."""
    return _scores(network.prefixes, task, device)


@runtime_checkable
class Repeating(Protocol):
    """A network that repeats a cell, and can answer after any number of steps."""

    def after(self, x: Tensor, steps: Sequence[int]) -> Iterable[Tensor]:
        """The outputs after each of these increasing numbers of steps."""
        ...


def depth_scores(network: Repeating, task: Task, device: str) -> dict[int, float]:
    """Steps → score on the whole test part, of a network in evaluation mode."""
    return dict(zip(DEPTHS, _scores(lambda x: network.after(x, DEPTHS), task, device), strict=True))


def _scores(answers: Callable[[Tensor], Iterable[Tensor]], task: Task, device: str) -> list[float]:
    """The test score of each of several outputs; NaN if the output has a NaN, which metrics take for a class."""
    metrics: list[Any] = []
    whole: list[bool] = []
    with torch.no_grad():
        for inputs, targets in DataLoader(task.test, TEST_BATCH, num_workers=task.workers):
            outputs = list(answers(inputs.to(device)))
            metrics = metrics or [_own_metric(task, device) for _ in outputs]
            whole = whole or [True for _ in outputs]
            for number, (metric, answer) in enumerate(zip(metrics, outputs, strict=True)):
                metric.update(answer, targets.to(device))
                whole[number] &= not bool(answer.isnan().any())
    return [float(metric.compute()) if good else math.nan for metric, good in zip(metrics, whole, strict=True)]


def _mean_evaluations(solutions: list[Solution]) -> float:
    return sum(solution.evaluations.double().mean().item() for solution in solutions)


def _share_converged(solutions: list[Solution]) -> float | None:
    """Share of rows whose solves all converged; None if every solve has a number of steps and no tolerance."""
    asked = [solution for solution in solutions if not solution.fixed]
    if not asked:
        return None if solutions else 1.0
    return torch.stack([solution.converged for solution in asked]).all(dim=0).double().mean().item()


def _repeated(inputs: Tensor, size: int) -> Tensor:
    """`size` rows, which repeat from the first if there are fewer."""
    return inputs[torch.arange(size, device=inputs.device) % len(inputs)]


def latency(network: nn.Module, inputs: Tensor) -> float:
    """Median seconds of a forward pass without a graph, the first two passes left out."""
    times: list[float] = []
    with torch.no_grad():
        while len(times) < 3 or (len(times) < LATENCY_RUNS + 2 and sum(times) < LATENCY_SECONDS):
            start = time.perf_counter()
            network(inputs)
            if inputs.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return statistics.median(times[2:])
