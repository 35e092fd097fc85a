"""What is wrong with a layer, in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from solvers import State

from ..calls import Call, aside, detached, first_of_each, layer_calls
from ..copies import copied
from ..equilibrium import Equilibrium
from ..layer import Layer
from .findings import LEFT_OUT, Finding, LeftOutError, Look, first_line
from .gradient_checks import backward, hidden, loose, moved
from .host_time import waiting
from .solve_checks import coupled, diverging, expanding, floor, not_finite, short, standing, stochastic, unfinished
from .tables import Table


def diagnose(model: nn.Module, *inputs: Any, z0: State | None = None, **keywords: Any) -> Table[Finding]:
    """Find what keeps a layer from converging, or its gradient from being right; an empty list: nothing found.

    Looks, in this order, for a stochastic cell (reported alone, since nothing else would be meaningful); rows that
    diverge, with the norms of the weights; rows coupled through the batch; rows that are not finite; the dtype's floor;
    stalled or cycling rows; rows whose steps ran out; a spectral radius above 1; no gradient, or one that is not
    finite; a backward solve that does not converge; a gradient that misses part of the cell; a policy of one's own that
    changes the value; a tolerance too loose for the gradient (or a cell that fails in float64, so this cannot be
    decided); a history too short; and on a CUDA device a solve that waits for the host. The last findings say which
    checks were left out, and why. A model, a layer or a backward pass that fails is a finding, too.

    A policy that approximates the gradient by choice is no fault here: `gradient_audit` says how far off it is.

    Costs several solves of this batch, one of them in float64, on a copy: the model and the random state are left as
    they were. Objects that cannot be copied (locks, open files) are shared with the copy. Coupling takes 2 log₂(batch)
    evaluations; the radius is measured on 8 rows spread over the batch. A solve that could use `Captured` but does not
    counts as waiting for the host if the cell keeps the device busy for less than half of a step. A `Looped` has no
    tolerance, so only non-finite rows, the spectral radius at its last iterates and the gradient are examined; there a
    random cell and coupled rows are no fault.

        for finding in implicit.diagnostics.diagnose(layer, x):
            print(finding)

    Args:
        model: an `Equilibrium` or a `Looped`, or a model that contains some, each examined at its first call; set the
            mode to be examined, training or evaluation, beforehand.
        inputs, keywords: as the model takes them, by position and by name.
        z0: the start, if the model is itself such a layer.

    Raises:
        TypeError: the model is not a module, or z0 is given for a model that is not such a layer.
        ValueError: the model calls no such layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}: pass an Equilibrium, a Looped, or a module that contains one"
        )
    with aside(model):  # rows that do not converge make findings, not warnings
        calls, failures = _calls(model, detached(inputs), detached(z0), detached(keywords))
        findings: Table[Finding] = Table(failures)
        for call in calls:
            with call.conditions():
                findings += [replace(finding, layer=call.name) for finding in _findings(call)]
        return findings


def _calls(
    model: nn.Module, inputs: tuple[Any, ...], z0: State | None, keywords: dict[str, Any]
) -> tuple[list[Call], list[Finding]]:
    """The first call of each layer, and a finding if the model fails."""
    if isinstance(model, Layer):
        return [Call("", model, model.positional(inputs, keywords), z0)], []
    if z0 is not None:
        raise TypeError(
            f"z0 is the start of an Equilibrium or a Looped, and model is a {type(model).__name__}: leave z0 out"
        )
    failures: list[Finding] = []
    calls: list[Call] = []
    try:
        model = copied(model)
        with torch.no_grad(), layer_calls(model) as calls:
            model(*inputs, **keywords)
    except Exception as error:  # whatever the user's module raises
        failures = [_failed("the model fails", error, "the layers that it called before that were checked")]
    if not calls and not failures:
        raise ValueError(
            f"{type(model).__name__} has called no Equilibrium or Looped on these inputs: there is nothing to diagnose"
        )
    return first_of_each(calls), failures


def _findings(call: Call) -> list[Finding]:
    """What the checks find, followed by the checks that could not be made."""
    try:
        look = Look(call.apart())
        look.solution  # noqa: B018
    except Exception as error:  # whatever the user's cell raises
        return [_failed("the layer cannot be solved", error, "no check was made")]
    found: list[Finding] = []
    left_out: list[Finding] = []
    checks = CHECKS if isinstance(look.layer, Equilibrium) else LOOP_CHECKS
    for what, check in checks.items():
        try:
            finding = check(look)
        except LeftOutError as reason:
            left_out.append(Finding(LEFT_OUT, f"{what}: {first_line(reason)}", "The other checks were made"))
        except Exception as error:
            left_out.append(_failed(LEFT_OUT, error, "the other checks were made", f"{what}: "))
        else:
            found += [finding] if finding else []
            if finding and check is stochastic:
                break
    return found + left_out


def _failed(name: str, error: Exception, meanwhile: str, what: str = "") -> Finding:
    evidence = f"{what}{type(error).__name__}: {first_line(error)}"
    return Finding(name, evidence, f"Fix that and diagnose again; {meanwhile}")


CHECKS: dict[str, Callable[[Look], Finding | None]] = {
    "stochastic cell": stochastic,
    "divergence": diverging,
    "coupled rows": coupled,
    "finite rows": not_finite,
    "the dtype's floor": floor,
    "stalled rows": standing,
    "steps": unfinished,
    "spectral radius": expanding,
    "gradient": backward,
    "derivative": hidden,
    "value": moved,
    "tolerance for the gradient": loose,
    "length of the history": short,
    "wait for the host": waiting,
}

LOOP_CHECKS = {what: CHECKS[what] for what in ("finite rows", "spectral radius", "gradient", "derivative")}
"""The checks of a layer that does not solve."""
