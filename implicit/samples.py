"""What a monitor records of one layer at one step of training."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from solvers import Solution
from solvers.state import Layout

from .calls import Call, aside
from .diagnostics import Line, Table, gradient_audit, spectral_radius
from .equilibrium import Equilibrium
from .logs import Log
from .parametrized import one_weight


@dataclass(frozen=True)
class Sample(Line):
    """One layer at one step of training."""

    step: int
    """Training step, from 0."""
    layer: str
    """The layer's place in the model."""
    residual: float
    """Largest relative residual of its forward solves, over the rows."""
    converged: float
    """Share of the rows whose forward solve converged; NaN for a `Looped`, which has no tolerance."""
    evaluations: float
    """Evaluations of f per row in forward solves, summed over the layer's calls in this step."""
    backward_evaluations: float
    """Products per row in backward solves, likewise; 0: the policy solves nothing, or there was no backward pass."""
    spectral_radius: float
    """Largest over a few rows, at their solutions, in the layer's first call; NaN: it could not be found."""
    gradient_cosine: float
    """Cosine of the layer's gradient with the exact one, on the same rows; NaN: no exact gradient could be found, or
    the layer is a `Looped`, which has none."""


COLUMNS = [field.name for field in fields(Sample)]


def scalars(sample: Sample) -> dict[str, float]:
    """The figures of a sample that are finite numbers, by `implicit/LAYER/FIGURE`."""
    figures = {name: value for name, value in sample.to_dict().items() if name not in ("step", "layer")}
    return {f"implicit/{sample.layer}/{name}": value for name, value in figures.items() if math.isfinite(value)}


def read_samples(path: str | Path) -> Table[Sample]:
    """The samples in a file written by a `Monitor`."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{path} was not written by a Monitor: its columns are not {', '.join(COLUMNS)}")
        kinds = {"step": int, "layer": str}
        samples: Table[Sample] = Table()
        for line in reader:
            try:
                samples.append(Sample(**{name: kinds.get(name, float)(line[name]) for name in COLUMNS}))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {reader.line_num} is not a whole sample: remove it from the file"
                ) from error
        return samples


def sampled(step: int, call: Call, log: Log, rows: int) -> tuple[Sample, dict[str, str]]:
    """The sample, and for each figure that could not be found, the reason."""
    forward, backward = (
        [entry.solution for entry in entries if entry.name == call.name] for entries in (log.forward, log.backward)
    )
    asked = [solution.converged for solution in forward if not solution.fixed]
    converged = torch.cat(asked).double() if asked else torch.tensor([math.nan], device="cpu")
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


def _looked_at(call: Call, rows: int) -> tuple[list[float], dict[str, str]]:
    """Radius and cosine, NaN where they are not found, and why: a missing figure must not end the training."""
    if not Layout(call.start).batch:
        return [math.nan, math.nan], {}
    figures: list[float] = []
    failures: dict[str, str] = {}
    with aside(call.layer), call.conditions():
        for name, look in (("spectral radius", _largest_radius), ("gradient cosine", _cosine)):
            if look is _cosine and not isinstance(call.layer, Equilibrium):
                figures.append(math.nan)  # a `Looped` has none
                continue
            try:
                figures.append(look(call.apart().of_rows(rows)))
            except Exception as error:  # also of the user's cell, under conditions that it was not written for
                figures.append(math.nan)
                failures[name] = f"{call.name}: the monitor cannot compute the {name} ({error})"
    return figures, failures


def _largest_radius(call: Call) -> float:
    z = call.layer.solve(*call.inputs, z0=call.z0).value
    with one_weight(call.layer.cell):
        radii = spectral_radius(call.layer.cell, z, call.inputs).tolist()
    finite = [found for found in radii if not math.isnan(found)]
    if not finite:
        raise ValueError("the Jacobian is not finite at any of the solutions examined")
    return max(finite)


def _cosine(call: Call) -> float:
    return gradient_audit(call.layer, *call.inputs, z0=call.z0, repeats=0).cosine


def _a_row(solutions: list[Solution]) -> float:
    return sum(s.evaluations.double().mean().item() for s in solutions if len(s.evaluations))
