"""What the diagnosis says about a trained network that solves equilibria."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from implicit import ConvergenceWarning, one_weight
from implicit.calls import Call, first_of_each, layer_calls
from implicit.diagnostics import Finding, diagnose, eigenvalues
from solvers import ConvergenceError, Status

from ..errors import first_line
from ..failures import Failures

T = TypeVar("T")

ROWS, LARGE, LARGE_ROWS = 16, 1024, 4
"""Test rows that are diagnosed; `LARGE_ROWS` if an input has more than `LARGE` entries, as its Jacobian is costly."""
SPECTRUM_SHARE, SPECTRUM_VALUES, SPECTRUM_LAYERS = 4, 6, 3
"""Eigenvalues: at one in how many of those rows, how many of largest modulus, and in how many layers at most."""


@dataclass(frozen=True)
class Diagnosis:
    """The findings on one network, and the numbers behind their figure."""

    findings: list[Finding]
    layers: list[str]
    """Names of the layers that were called, in their order, each once."""
    rows: int
    """Number of test rows that were diagnosed."""
    seconds: float
    eigenvalues: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """Layer → (rows, values) complex eigenvalues of the Jacobian at the solutions, without rows that are not finite."""
    failures: list[str] = field(default_factory=list)
    """What could not be computed, and why."""

    @property
    def healthy(self) -> bool:
        """Whether no fault was found, and nothing failed."""
        return not any(finding.fault for finding in self.findings) and not self.failures

    def title(self, layer: str) -> str:
        """A readable name of the layer: its place among the layers."""
        return "equilibrium" if len(self.layers) == 1 else f"layer {self.layers.index(layer) + 1}"

    def merged(self) -> dict[str, list[Finding]]:
        """Name of a finding → the layers' findings of that name."""
        merged: dict[str, list[Finding]] = {}
        for finding in self.findings:
            merged.setdefault(finding.name, []).append(finding)
        return merged

    def to_dict(self) -> dict[str, Any]:
        """The numbers, fit for JSON; an eigenvalue becomes its real and imaginary part."""
        return {
            **vars(self),
            "findings": [finding.to_dict() for finding in self.findings],
            "eigenvalues": {name: torch.view_as_real(values).tolist() for name, values in self.eigenvalues.items()},
        }


def diagnosed(network: nn.Module, inputs: Tensor, failures: Failures) -> Diagnosis:
    """Diagnose a network on the first rows of the inputs, (batch, …), in its current mode.

    An error is noted in `failures`, except for a solve that does not converge; the diagnosis reports both.
    """
    started = time.perf_counter()
    inputs = inputs[: ROWS if inputs[0].numel() <= LARGE else LARGE_ROWS]
    unknown: list[str] = []

    def attempt(what: str, make: Callable[[], T]) -> T | None:
        def unless_unsolved() -> T | None:
            try:
                return make()
            except ConvergenceError as error:
                unknown.append(f"{what} ended with {type(error).__name__}: {first_line(error)}")
                return None

        before = len(failures.found)
        found = failures.attempt(what, unless_unsolved)
        unknown.extend(f"{what} ended with {failure.error}" for failure in failures.found[before:])
        return found

    findings = attempt("the diagnosis", lambda: list(diagnose(network, inputs)))
    with warnings.catch_warnings(), torch.no_grad(), layer_calls(network) as calls:
        warnings.simplefilter("ignore", ConvergenceWarning)  # the findings report it
        network(inputs)
    first = {call.name: call for call in first_of_each(calls)}
    layers, values = list(first), {}
    for name in _spread(layers):
        call = first[name].of_rows(-(-len(inputs) // SPECTRUM_SHARE))
        found = attempt(f"the eigenvalues of {name or 'the layer'}", partial(_spectrum, call))
        if found is not None and len(found):
            values[name] = found
    return Diagnosis(findings or [], layers, len(inputs), time.perf_counter() - started, values, unknown)


def _spread(layers: list[str]) -> list[str]:
    """At most `SPECTRUM_LAYERS` of them, with the first and the last."""
    count = min(SPECTRUM_LAYERS, len(layers))
    return [layers[round(place)] for place in np.linspace(0, len(layers) - 1, count)]


def _spectrum(call: Call) -> Tensor:
    """(rows, values) eigenvalues at the solutions, of the rows whose cell and Jacobian are finite there."""
    solution = call.layer.solve(*call.inputs, z0=call.z0)
    z, finite = solution.value, (solution.status != Status.NON_FINITE).cpu()
    size = sum(part[0].numel() for part in ((z,) if isinstance(z, Tensor) else z))
    with one_weight(call.layer.cell):
        values = eigenvalues(call.layer.cell, z, call.inputs, k=min(SPECTRUM_VALUES, size))
    return values[finite & torch.view_as_real(values).isfinite().flatten(1).all(dim=1)]
