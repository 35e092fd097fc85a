"""Find and name modules that do not belong in a cell."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from solvers.caller import level_of_caller

from .coupling import REMEDY, uses_batch_statistics

_COUPLES = (
    "couples the rows through batch statistics, and updates its running ones at every evaluation of a solve: use "
    "GroupNorm or LayerNorm"
)
_ALWAYS = (
    "couples the rows through batch statistics, in evaluation mode as well, since it keeps none: use GroupNorm or "
    "LayerNorm"
)
_DROPS = "draws a new mask at every evaluation, so no fixed point exists: pass in a mask from LockedDropout"


def warn_of_unsuitable(cell: nn.Module) -> bool:
    """Whether the cell has modules whose evaluations differ, or mix the batch's rows; a `RuntimeWarning` names them."""
    found = list(unsuitable(cell))
    findings = [f"{name or 'the cell itself'} ({type(module).__name__}) {fault}" for name, module, fault in found]
    if findings:
        changed = sum(fault is not _ALWAYS for _, _, fault in found)
        advice = f". Or call eval() on {'it' if changed == 1 else 'them'}" if changed == len(found) else ""
        warnings.warn(
            f"in a cell, {'; '.join(findings)}{advice}",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )
    return bool(findings)


def warn_of_chance() -> None:
    """A `RuntimeWarning` for a cell that gave another value when evaluated again at the solution."""
    warnings.warn(
        "evaluating the cell again at the solution gave another value: it is not deterministic (dropout, noise), or "
        "computes something else when gradients are recorded, so it has no fixed point to differentiate. Draw random "
        "masks outside the cell and pass them in as inputs (see LockedDropout)",
        RuntimeWarning,
        stacklevel=level_of_caller(),
    )


def warn_of_change() -> None:
    """A `RuntimeWarning` for a cell that gave another value when a backward pass evaluated it again."""
    warnings.warn(
        "the backward pass evaluated the cell again at the solution, as second derivatives and hooks on saved tensors "
        "require, and it gave another value than in the forward pass. Its gradients are those of the new value. Either "
        "the cell is not deterministic, or something has changed that it reads by way of a hook, a closure or a global "
        "variable, such as its mode: change it after the backward pass",
        RuntimeWarning,
        stacklevel=level_of_caller(),
    )


def warn_of_stale_recording() -> None:
    """A `RuntimeWarning` for a cell that now computes something else than what was recorded of it."""
    warnings.warn(
        "loop=Captured(): the cell, evaluated at the solution, gave another value than its recorded steps, so "
        "something that it reads has changed unnoticed: an attribute whose name begins with an underscore, an object's "
        "inside, an attribute of a class, or a global variable. Make it a public attribute or an input. This "
        "solve is repeated, and later ones of the layer run, without recordings",
        RuntimeWarning,
        stacklevel=level_of_caller(),
    )


def warn_of_coupling() -> None:
    """A `RuntimeWarning` for a cell whose rows depend on each other, as evaluating all solutions together showed."""
    warnings.warn(
        "the rows of the cell depend on each other: the solutions found row by row do not hold when all rows are "
        f"evaluated together. {REMEDY}",
        RuntimeWarning,
        stacklevel=level_of_caller(),
    )


def unsuitable(cell: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The modules of the cell whose evaluations differ, or mix the batch's rows: their names, and what they do."""
    for name, module in cell.named_modules():
        if uses_batch_statistics(module):
            yield name, module, _ALWAYS if module.running_mean is None else _COUPLES
        elif module.training and drops(module):
            yield name, module, _DROPS


def drops(module: nn.Module) -> bool:
    """Whether it is a module of PyTorch that drops random entries in training."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, nn.MultiheadAttention) and module.dropout > 0
