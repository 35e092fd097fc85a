"""What a trained network costs, and how its equilibria converge."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode

from implicit import ConvergenceWarning, record
from implicit.diagnostics import residual_quantiles
from solvers import Solution

from .goals import Classification, margins
from .shares import TEST_BATCH
from .tasks import Task

LATENCY_BATCHES = (1, 256)
LATENCY_RUNS, LATENCY_SECONDS = 9, 1.0
"""At most so many passes, and no further one once they have taken so long."""


@dataclass(frozen=True)
class Measurement:
    """Figures of one trained network on the test part of its task."""

    score: float
    """On the whole test part."""
    margin: float | None
    """Median first-order distance of test points to the decision boundary; None: no classification of vectors."""
    flops: float
    """Matmul and convolution FLOPs executed a sample, forward, the solver's own included."""
    forward_evaluations: float
    """Evaluations of cells a row, summed over the network's solves; 0: it has none."""
    backward_evaluations: float
    """The same for the backward solves, on the first 256 rows."""
    converged: float
    """Share of rows all of whose forward solves converged; 1 without solves."""
    latency: dict[int, float]
    """Median seconds of a forward pass, for each batch size."""
    prefix_scores: list[float]
    """On the test part, of the first 1 … B branches alone; empty: a network without branches."""
    saved_bytes: int
    """Bytes that autograd keeps between the forward and backward pass of a training batch, parameters left out."""
    solutions: list[Solution] = field(repr=False)
    """The forward solves of the first test rows, without their values."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers, fit for JSON; of each solve the 10 %, 50 % and 90 % quantiles of the residuals at every step."""
        numbers: dict[str, Any] = {key: value for key, value in vars(self).items() if key != "solutions"}
        numbers["residual_quantiles"] = [residual_quantiles(solution).tolist() for solution in self.solutions]
        return numbers


def measure(network: nn.Module, task: Task, device: str) -> Measurement:
    """Measure a trained network, costs and solves on the first test rows; it is left in evaluation mode."""
    goal = task.goal
    inputs, targets = (part.to(device) for part in task.sample())
    network = network.to(device).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with torch.no_grad(), record() as log, FlopCounterMode(display=False) as counter:
            network(inputs)
        solutions = [entry.solution for entry in log.forward]
        with record() as log:
            loss = goal.loss(network(inputs[:256]), targets[:256])
            if loss.requires_grad:  # there is something to learn
                loss.backward()
        network.zero_grad()
        backward = [entry.solution for entry in log.backward]
        margin = None
        if isinstance(goal, Classification) and inputs.ndim == 2:
            margin = margins(network, inputs, targets).median().item()
        batch = default_collate([task.train[i] for i in range(min(task.batch, len(task.train)))])  # type: ignore[arg-type]
        return Measurement(
            score=score(network, task, device),
            margin=margin,
            flops=counter.get_total_flops() / len(inputs),
            forward_evaluations=_mean_evaluations(solutions),
            backward_evaluations=_mean_evaluations(backward),
            converged=_share_converged(solutions),
            latency={size: latency(network, _repeated(inputs, size)) for size in LATENCY_BATCHES},
            prefix_scores=prefix_scores(network, task, device) if isinstance(network, Branched) else [],
            saved_bytes=_saved_bytes(network, lambda: goal.loss(network(batch[0].to(device)), batch[1].to(device))),
            solutions=solutions,
        )


def score(network: nn.Module, task: Task, device: str) -> float:
    """On the whole test part, of a network in evaluation mode on that device."""
    metric = _own_metric(task, device)
    with torch.no_grad():
        for inputs, targets in DataLoader(task.test, TEST_BATCH, num_workers=task.workers):
            metric.update(network(inputs.to(device)), targets.to(device))
    return float(metric.compute())


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
    metrics: list[Any] = []
    with torch.no_grad():
        for inputs, targets in DataLoader(task.test, TEST_BATCH, num_workers=task.workers):
            outputs = network.prefixes(inputs.to(device))
            metrics = metrics or [_own_metric(task, device) for _ in outputs]
            for metric, answer in zip(metrics, outputs, strict=True):
                metric.update(answer, targets.to(device))
    return [float(metric.compute()) for metric in metrics]


def _mean_evaluations(solutions: list[Solution]) -> float:
    return sum(solution.evaluations.double().mean().item() for solution in solutions)


def _share_converged(solutions: list[Solution]) -> float:
    if not solutions:
        return 1.0
    return torch.stack([solution.converged for solution in solutions]).all(dim=0).double().mean().item()


def _repeated(inputs: Tensor, size: int) -> Tensor:
    """So many rows, from the first again where there are fewer."""
    return inputs[torch.arange(size, device=inputs.device) % len(inputs)]


def latency(network: nn.Module, inputs: Tensor) -> float:
    """Median seconds of a forward pass without a graph, the first two left out."""
    times: list[float] = []
    with torch.no_grad():
        while len(times) < 3 or (len(times) < LATENCY_RUNS + 2 and sum(times) < LATENCY_SECONDS):
            start = time.perf_counter()
            network(inputs)
            if inputs.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def _saved_bytes(network: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Storages, each counted once, that the graph of the loss holds in training mode, parameters left out."""
    known = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    sizes: dict[int, int] = {}
    kept = []  # a storage must live for its address to be its name

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    network.train()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    network.eval()
    return sum(sizes.values())
