"""What may be wrong with the gradient of a layer, a check a fault."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch

from solvers import ConvergenceError

from ..gradients import ImplicitGradient
from ..recording import record
from .audit import as_double, compare_gradients, differentiable
from .findings import Finding, Look, name_rows

LOOSE = 0.05
"""Relative error of the gradient, from the forward solve alone, that is worth a word."""


def backward(look: Look) -> Finding | None:
    inputs, wanted = differentiable(look.layer, look.inputs)
    if not wanted:
        return None
    with torch.enable_grad(), record() as log:
        flat = look.problem.layout.flatten(look.layer(*inputs, z0=look.z0))
        direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)).to(flat)
        with suppress(ConvergenceError):  # of Unconverged.RAISE; the log has it
            torch.autograd.grad(flat, wanted, direction, allow_unused=True)
    good = look.solution.converged
    failed = [entry.solution for entry in log.backward if bool((~entry.solution.converged & good).any())]
    if not failed:
        return None
    bad = ~failed[0].converged & good
    return Finding(
        "backward solve not converged",
        f"the adjoint solve of {name_rows(bad)} stopped at a relative residual of {failed[0].residual[bad].max():.1e}",
        "Raise max_steps of ImplicitGradient, give it another solver, or choose with unconverged= what becomes of them",
    )


def loose(look: Look) -> Finding | None:
    if not bool(look.solution.converged.all()):
        return None
    # in float64, so that rounding is not laid to the tolerance
    layer, (inputs, z0) = copy.deepcopy(look.layer).double(), as_double((look.inputs, look.z0))
    exact = {"exact": ImplicitGradient(rtol=1e-10, max_steps=1000)}
    try:
        error = compare_gradients(layer, *inputs, gradients=exact, rtols=[look.layer.rtol], z0=z0)[0].relative_error
    except (ConvergenceError, ValueError):
        return None  # without a reference nothing can be said
    except (RuntimeError, TypeError) as failure:
        return Finding(
            "cell tied to its dtype",
            f"it fails in float64, in which the gradient's reference is computed ({failure})",
            "Register its tensors as parameters or buffers, and make new ones like the state; or cast within the cell",
        )
    if error <= LOOSE:
        return None
    return Finding(
        "tolerance too loose for the gradient",
        f"at rtol={look.layer.rtol:g} the iterate alone puts the exact gradient off by {error:.0%}",
        f"Lower rtol to {look.layer.rtol * LOOSE / error / 5:.0e} or so; compare_gradients shows error against rtol",
    )
