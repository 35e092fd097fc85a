"""Watch the implicit layers of a model in training: a sample every so many steps, nothing paid between them."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from solvers import ConvergenceError, Solution

from .calls import Call, aside, first_of_each, layer_calls
from .diagnostics import Line, Table, gradient_audit, spectral_radius
from .parametrized import one_weight
from .recording import Log, record


@dataclass(frozen=True)
class Sample(Line):
    """One layer at one step of training."""

    step: int
    """Of training, from 0."""
    layer: str
    """Its place in the model."""
    residual: float
    """Largest relative residual of its forward solves, over the rows."""
    converged: float
    """Share of the rows, forward."""
    evaluations: float
    """Of f a row, forward, summed over the layer's calls in this step."""
    backward_evaluations: float
    """Products of the backward solves a row, likewise; 0: the gradient policy solves nothing, or there was no loss."""
    spectral_radius: float
    """Largest over a few rows, at their solutions, in the layer's first call; NaN: it was not found."""
    gradient_cosine: float
    """Of the layer's gradient policy and the exact gradient, on the same rows; NaN: no exact one was found."""


class MonitorWarning(UserWarning):
    """A sample lacks a figure; training goes on. Python's own warning filters decide how often it shows."""


class ScalarWriter(Protocol):
    """What TensorBoard's `SummaryWriter` offers."""

    def add_scalar(self, tag: str, value: float, step: int) -> object:
        """One point of a curve."""
        ...


class Monitor:
    """Samples residual, evaluations, spectral radius and gradient cosine of each layer every so many training steps.

        monitor = Monitor(model, every=100, path="monitor.csv")
        for x, y in loader:
            with monitor:  # one step: forward and backward, before the optimiser moves the weights
                loss(model(x), y).backward()
            optimizer.step()
        plot_monitor(monitor.samples)

    A sample solves a few rows again, on a copy of the layer and of the random state, so that training goes on as it
    would have; it costs some solves in float64. Between samples a step costs one comparison. Prefer
    `implicit.lightning_monitor.MonitorCallback` under Lightning.

    Args:
        model: with `Equilibrium` layers inside, or one itself.
        every: steps from a sample to the next; the first step is sampled.
        rows: of the batch on which spectral radius and cosine are found.
        path: a CSV file that gets a line a sample; appended to where it exists.
        writer: of TensorBoard; gets `implicit/LAYER/FIGURE` for each figure that is a number.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 100,
        rows: int = 8,
        path: str | Path | None = None,
        writer: ScalarWriter | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}: pass an nn.Module")
        check_counts(every=every, rows=rows)
        self.model, self.every, self.rows, self.writer = model, every, rows, writer
        self.path = None if path is None else Path(path)
        self.samples: Table[Sample] = Table()
        self.step = 0
        """Of the next block; set it where a training is resumed."""
        self._open: tuple[ExitStack, Log, list[Call]] | None = None
        if self.path is not None and self.path.exists():
            read_samples(self.path)  # a foreign file is refused now, not after hours

    def __enter__(self) -> Monitor:
        if self._open is not None:
            raise RuntimeError("Monitor: a step is under way already: blocks of one monitor cannot be nested")
        if self.step % self.every == 0:
            stack = ExitStack()
            self._open = stack, stack.enter_context(record(self.model)), stack.enter_context(layer_calls(self.model))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        step, self.step = self.step, self.step + 1
        if self._open is None:
            return
        (stack, log, calls), self._open = self._open, None
        stack.close()
        if kind is not None:
            return
        found = [_sample(step, call, log, self.rows) for call in first_of_each(calls)]
        self._keep([sample for sample, _ in found])
        failures = [failure for _, failures in found for failure in failures]
        for failure in failures or ([] if calls else [f"the monitor saw no Equilibrium called at step {step}"]):
            warnings.warn(failure, MonitorWarning, stacklevel=2)

    def _keep(self, samples: Sequence[Sample]) -> None:
        self.samples.extend(samples)
        if self.path is not None and samples:
            fresh = not self.path.exists()
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if fresh:
                    writer.writeheader()
                writer.writerows(sample.to_dict() for sample in samples)
        if self.writer is not None:
            for sample in samples:
                for tag, value in scalars(sample).items():
                    self.writer.add_scalar(tag, value, sample.step)


def check_counts(**counts: int) -> None:
    """`ValueError` for what is no number of steps or rows."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"Monitor: {name}={value!r} must be an integer of at least 1")


COLUMNS = [field.name for field in fields(Sample)]


def scalars(sample: Sample) -> dict[str, float]:
    """`implicit/LAYER/FIGURE` → its figures that are numbers."""
    figures = {name: value for name, value in sample.to_dict().items() if name not in ("step", "layer")}
    return {f"implicit/{sample.layer}/{name}": value for name, value in figures.items() if math.isfinite(value)}


def read_samples(path: str | Path) -> Table[Sample]:
    """The samples of a file that a `Monitor` has written."""
    with Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{path} is no file of a Monitor: its columns are not {', '.join(COLUMNS)}")
        kinds = {"step": int, "layer": str}
        samples: Table[Sample] = Table()
        for line in reader:
            try:
                samples.append(Sample(**{name: kinds.get(name, float)(line[name]) for name in COLUMNS}))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {reader.line_num} is no whole sample: take it out of the file"
                ) from error
        return samples


def _sample(step: int, call: Call, log: Log, rows: int) -> tuple[Sample, list[str]]:
    """And what could not be found, in words."""
    forward, backward = (
        [entry.solution for entry in entries if entry.name == call.name] for entries in (log.forward, log.backward)
    )
    converged = torch.cat([solution.converged for solution in forward]).double()
    figures, failures = _looked_at(call, rows)
    return Sample(
        step=step,
        layer=call.name,
        residual=max((solution.residual.max().item() for solution in forward if len(solution.residual)), default=0.0),
        converged=converged.mean().item() if len(converged) else 1.0,
        evaluations=_a_row(forward),
        backward_evaluations=_a_row(backward),
        spectral_radius=figures[0],
        gradient_cosine=figures[1],
    ), failures


def _looked_at(call: Call, rows: int) -> tuple[list[float], list[str]]:
    """Radius and cosine, NaN where they are not found, and why: a training must not end for want of a figure."""
    figures, failures = [], []
    with aside(call.layer), call.conditions():
        for name, look in (("spectral radius", _largest_radius), ("gradient cosine", _cosine)):
            try:
                figures.append(look(call.apart().of_rows(rows)))
            except (ConvergenceError, ValueError):
                figures.append(math.nan)  # there is none
            except Exception as error:  # of the user's cell, under conditions that it was not written for
                figures.append(math.nan)
                failures.append(f"{call.name}: the monitor cannot find the {name} ({error})")
    return figures, failures


def _largest_radius(call: Call) -> float:
    z, (f, own) = call.layer.solve(*call.inputs, z0=call.z0).value, call.by_row()
    with one_weight(call.layer.cell):
        radii = spectral_radius(f, z, own).tolist()
    return max((found for found in radii if not math.isnan(found)), default=math.nan)


def _cosine(call: Call) -> float:
    return gradient_audit(call.layer, *call.inputs, z0=call.z0).cosine


def _a_row(solutions: list[Solution]) -> float:
    return sum(s.evaluations.double().mean().item() for s in solutions if len(s.evaluations))
