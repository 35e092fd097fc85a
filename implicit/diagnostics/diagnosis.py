"""What is wrong with a layer, in words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from solvers import State

from ..calls import Call, aside, detached, first_of_each, layer_calls
from ..equilibrium import Equilibrium
from ..layer import Layer
from .findings import Finding, Look
from .gradient_checks import backward, loose
from .host_time import waiting
from .solve_checks import coupled, expanding, floor, not_finite, short, standing, stochastic, unfinished
from .tables import Table


def diagnose(model: nn.Module, *inputs: Any, z0: State | None = None) -> Table[Finding]:
    """Look for what keeps a layer from converging, or its gradient from being right; an empty list: nothing found.

    In this order: a stochastic cell (whatever else were found would mean nothing, so it is found alone), rows coupled
    through the batch, rows that are not finite, the dtype's floor, stalled or cycling rows, rows whose steps ran out,
    a spectral radius above 1, no gradient, or one that is not finite, a backward solve that does not converge, a
    tolerance too loose for the gradient (or a cell for which that cannot be told, since it fails in float64), a history
    too short, and on a CUDA device a solve that waits for the host. Costs some solves, among them one in float64, on
    this batch, of a copy: the model is left as it was, the random state too. Coupling and radius are looked at in 8
    rows, spread over the batch. The wait is measured with a clock, where the loop is not `Captured` and could be: one
    evaluation of the cell keeps the device busy for less than half the time of a step. Of a `Looped`, which has no
    tolerance, rows that are not finite, the spectral radius at its last iterates, and the gradient are looked at: there
    a random cell and rows that depend on each other are no fault.

        for finding in implicit.diagnostics.diagnose(layer, x):
            print(finding)

    Args:
        model: an `Equilibrium` or a `Looped`, or a model with some inside, each of which is looked at in its first
            call; in the mode, training or evaluation, that is to be looked at.
        inputs: as the model takes them.
        z0: the start, of such a layer.

    Raises:
        ValueError: the model has called none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}: pass an Equilibrium, a Looped, or a module with some inside"
        )
    with aside(model):  # what did not converge is a finding
        findings: Table[Finding] = Table()
        for call in _calls(model, detached(inputs), detached(z0)):
            with call.conditions():
                findings += [replace(finding, layer=call.name) for finding in _findings(Look(call.apart()))]
        return findings


def _calls(model: nn.Module, inputs: tuple[Any, ...], z0: State | None) -> list[Call]:
    """The first call of each layer."""
    if isinstance(model, Layer):
        return [Call("", model, inputs, z0)]
    if z0 is not None:
        raise TypeError(f"z0 is the warm start of an Equilibrium, and {type(model).__name__} is none")
    try:
        model = copy.deepcopy(model)
    except Exception as error:  # whatever a module of the user's raises
        raise TypeError(f"{type(model).__name__} cannot be copied, and only a copy is looked at: {error}") from error
    with torch.no_grad(), layer_calls(model) as calls:
        model(*inputs)
    if not calls:
        raise ValueError(
            f"{type(model).__name__} has called no Equilibrium, nor a Looped, on these inputs: there is nothing to find"
        )
    return first_of_each(calls)


def _findings(look: Look) -> list[Finding]:
    if not isinstance(look.layer, Equilibrium):
        return [finding for check in LOOP_CHECKS for finding in [check(look)] if finding]
    fault = stochastic(look)
    return [fault] if fault else [finding for check in CHECKS for finding in [check(look)] if finding]


CHECKS: tuple[Callable[[Look], Finding | None], ...] = (
    coupled,
    not_finite,
    floor,
    standing,
    unfinished,
    expanding,
    backward,
    loose,
    short,
    waiting,
)
LOOP_CHECKS: tuple[Callable[[Look], Finding | None], ...] = (not_finite, expanding, backward)
"""Of a layer that does not solve."""
