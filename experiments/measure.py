"""What a trained network costs, and how its equilibria converge."""

from __future__ import annotations

import statistics
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.classification import multiclass_accuracy

from implicit import ConvergenceWarning, record
from implicit.diagnostics import residual_quantiles
from solvers import Solution

from .tasks import Task
from .training import BATCH

LATENCY_BATCHES = (1, 256)
LATENCY_RUNS = 9


@dataclass(frozen=True)
class Measurement:
    """Figures of one trained network on the test part of its task."""

    accuracy: float
    flops: float
    """Matmul and convolution FLOPs executed a sample, forward, the solver's own included."""
    forward_evaluations: float
    """Evaluations of cells a row, summed over the network's solves; 0: it has none."""
    backward_evaluations: float
    """The same for the backward solves, on the first 256 rows."""
    converged: float
    """Share of test rows all of whose forward solves converged; 1 without solves."""
    latency: dict[int, float]
    """Median seconds of a forward pass, for each batch size."""
    saved_bytes: int
    """Bytes that autograd keeps between the forward and backward pass of a training batch, parameters left out."""
    solutions: list[Solution] = field(repr=False)
    """The forward solves of the test part, without their values."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers, fit for JSON; of each solve the 10 %, 50 % and 90 % quantiles of the residuals at every step."""
        numbers: dict[str, Any] = {key: value for key, value in vars(self).items() if key != "solutions"}
        numbers["residual_quantiles"] = [residual_quantiles(solution).tolist() for solution in self.solutions]
        return numbers


def measure(network: nn.Module, task: Task, device: str) -> Measurement:
    """Measure a trained network; it is left in evaluation mode."""
    inputs, labels = (part.to(device) for part in task.test)
    network = network.to(device).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with torch.no_grad(), record() as log, FlopCounterMode(display=False) as counter:
            predicted = network(inputs).argmax(dim=1)
        solutions = [entry.solution for entry in log.forward]
        with record() as log:
            loss = nn.functional.cross_entropy(network(inputs[:256]), labels[:256])
            loss.backward()
        network.zero_grad()
        backward = [entry.solution for entry in log.backward]
        return Measurement(
            accuracy=multiclass_accuracy(predicted, labels, task.classes, average="micro").item(),
            flops=counter.get_total_flops() / len(inputs),
            forward_evaluations=_mean_evaluations(solutions),
            backward_evaluations=_mean_evaluations(backward),
            converged=_share_converged(solutions),
            latency={batch: _latency(network, inputs[:batch]) for batch in LATENCY_BATCHES},
            saved_bytes=_saved_bytes(network, *(part[:BATCH].to(device) for part in task.train)),
            solutions=solutions,
        )


def _mean_evaluations(solutions: list[Solution]) -> float:
    return sum(solution.evaluations.double().mean().item() for solution in solutions)


def _share_converged(solutions: list[Solution]) -> float:
    if not solutions:
        return 1.0
    return torch.stack([solution.converged for solution in solutions]).all(dim=0).double().mean().item()


def _latency(network: nn.Module, inputs: Tensor) -> float:
    times = []
    with torch.no_grad():
        for _ in range(LATENCY_RUNS + 2):
            start = time.perf_counter()
            network(inputs)
            if inputs.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def _saved_bytes(network: nn.Module, inputs: Tensor, labels: Tensor) -> int:
    """Storages, each counted once, that the graph of a training loss holds."""
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
        nn.functional.cross_entropy(network(inputs), labels)
    network.eval()
    return sum(sizes.values())
