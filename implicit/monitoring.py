"""Watch the implicit layers of a model in training: a sample every few steps, at no cost between them."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from torch import nn

from .calls import Call, first_of_each, layer_calls
from .diagnostics import Table
from .logs import Log, record
from .samples import COLUMNS, Sample, read_samples, sampled, scalars

__all__ = ["Monitor", "MonitorWarning", "Sample", "read_samples"]


class MonitorWarning(UserWarning):
    """A sample lacks a figure; training goes on. A monitor warns once for each layer and figure."""


class ScalarWriter(Protocol):
    """What TensorBoard's `SummaryWriter` offers."""

    def add_scalar(self, tag: str, value: float, step: int) -> object:
        """One point of a curve."""
        ...


class Monitor:
    """Samples residual, evaluations, spectral radius and gradient cosine of each layer every `every` training steps.

        monitor = Monitor(model, every=100, path="monitor.csv")
        for x, y in loader:
            with monitor:  # one step: forward and backward, before the optimiser moves the weights
                loss(model(x), y).backward()
            optimizer.step()
        plot_monitor(monitor.samples)

    A sample solves a few rows again, with a copy of the layer and of the random state, so it does not affect training;
    it costs some solves in float64. Between samples a step costs one comparison. Prefer
    `implicit.lightning_monitor.MonitorCallback` under Lightning.

    Args:
        model: a module with `Equilibrium` or `Looped` layers inside, or such a layer itself.
        every: steps between samples; the first step is sampled.
        rows: number of rows of the batch on which spectral radius and cosine are measured.
        path: a CSV file to which each sample adds a line.
        writer: TensorBoard's; gets `implicit/LAYER/FIGURE` for each figure that is a number.
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
        """Number of the next step; set it when training is resumed."""
        self._told: set[tuple[str, str]] = set()
        """Layer and figure of each warning so far."""
        self._open: tuple[ExitStack, Log, list[Call]] | None = None
        if self.path is not None and self.path.exists():
            read_samples(self.path)  # a foreign file is refused now, not after hours

    def __enter__(self) -> Monitor:
        if self._open is not None:
            raise RuntimeError("Monitor: a step is already in progress, and blocks of one monitor cannot be nested")
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
        found = [sampled(step, call, log, self.rows) for call in first_of_each(calls)]
        self._keep([sample for sample, _ in found])
        missing = {(sample.layer, name): why for sample, failures in found for name, why in failures.items()}
        if not calls:
            missing["", "call"] = f"the monitor saw no call of an Equilibrium or a Looped at step {step}"
        for what, why in missing.items():
            if what not in self._told:
                self._told.add(what)
                warnings.warn(f"{why}; reported once", MonitorWarning, stacklevel=2)

    def _keep(self, samples: Sequence[Sample]) -> None:
        self.samples.extend(samples)
        if self.path is not None and samples:
            fresh = not self.path.exists()
            with self.path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if fresh:
                    writer.writeheader()
                writer.writerows(sample.to_dict() for sample in samples)
        if self.writer is not None:
            for sample in samples:
                for tag, value in scalars(sample).items():
                    self.writer.add_scalar(tag, value, sample.step)


def check_counts(**counts: int) -> None:
    """`ValueError` unless each is an integer of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"Monitor: {name}={value!r} must be an integer of at least 1")
