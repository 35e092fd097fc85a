"""Checks of a layer's gradient, one for each fault."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from solvers import ConvergenceError, Status

from ..copies import copied
from ..draws import normal
from ..gradients import ImplicitGradient
from ..graph import refuse_hidden
from ..parametrized import one_weight
from ..recording import record
from .audit import compare_gradients, differentiable
from .findings import Finding, LeftOutError, Look, name_rows
from .reference import as_double, exact_layer

LOOSE = 0.05
"""Relative error of gradient or iterate, from the forward solve alone, above which a finding is made."""


def backward(look: Look) -> Finding | None:
    inputs, wanted = differentiable(look.layer, look.inputs)
    if not wanted:
        return None
    with torch.enable_grad(), one_weight(look.layer.cell):
        point = look.value.detach().requires_grad_()
        try:
            refuse_hidden("the cell", look.problem, point, look.problem(point))
        except ValueError as hidden:
            return Finding("no gradient", str(hidden), "The layer can be solved, but not trained through")
    with torch.enable_grad(), record() as log:
        flat = look.problem.layout.flatten(look.layer(*inputs, z0=look.z0))
        direction = normal(flat.shape, flat)
        found: Sequence[Tensor | None] = ()
        with suppress(ConvergenceError):  # from Unconverged.RAISE; the log has the solve
            found = torch.autograd.grad(flat, wanted, direction, allow_unused=True)
    good = look.solution.converged
    broken = sum(not bool(gradient.isfinite().all()) for gradient in found if gradient is not None)
    adjoint = [entry.solution.status == Status.NON_FINITE for entry in log.backward]
    if not bool((look.solution.status == Status.NON_FINITE).any()) and (broken or any(map(Tensor.any, adjoint))):
        where = f"the gradient holds NaN or Inf for {broken} of {len(wanted)} parameters and inputs"
        if not broken:
            where = f"the adjoint solve of {name_rows(torch.stack(adjoint).any(dim=0))} produced NaN or Inf"
        return Finding(
            "gradient that is not finite",
            f"{where}, though the solution is finite",
            "Look for Inf in the inputs, and for roots, norms and quotients at 0 in the cell: add a small number there",
        )
    floor = 4 * look.problem.rounding  # the dtype allows no smaller residual
    failures = [
        (entry.solution, bad)
        for entry in log.backward
        for bad in [~entry.solution.converged & good & ~(entry.solution.residual <= floor)]
        if bool(bad.any())
    ]
    if not failures:
        return None
    solution, bad = failures[0]
    return Finding(
        "backward solve not converged",
        f"the adjoint solve of {name_rows(bad)} stopped at a relative residual of {solution.residual[bad].max():.1e}",
        "Raise max_steps of ImplicitGradient, give it another solver, or choose how to treat such rows by unconverged=",
    )


def loose(look: Look) -> Finding | None:
    if not bool(look.solution.converged.all()):
        return None
    if look.coupling.any():
        raise LeftOutError("the rows depend on each other, and this check needs each problem to be one row")
    # in float64, so that rounding is not blamed on the tolerance
    start, inputs = as_double((look.layer.start(look.inputs, look.z0), look.inputs))
    layer = copied(look.layer).double()
    exact = {"exact": ImplicitGradient(rtol=1e-10, max_steps=1000)}
    try:
        reference = exact_layer(layer, inputs, start).solve(*inputs, z0=start).value
        layer.gradient = exact["exact"]
        found = layer.solve(*inputs, z0=start).value
        rows = compare_gradients(layer, *inputs, gradients=exact, rtols=[look.layer.rtol], z0=start, repeats=0)
    except ConvergenceError as failure:
        raise LeftOutError(str(failure)) from failure  # without a reference nothing can be said
    except ValueError:
        return None  # there is no gradient, which another check reports
    except TypeError as failure:
        return Finding(
            "cell tied to its dtype",
            str(failure),
            "Register its tensors as parameters or buffers, and make new ones like the state; or cast within the cell",
        )
    true, near = (look.problem.layout.flatten(state).double() for state in (reference, found))
    length = torch.linalg.vector_norm(true, dim=1)
    off = torch.linalg.vector_norm(near - true, dim=1) / torch.where(length > 0, length, 1)
    far = off > LOOSE
    error = rows[0].relative_error
    worst = max(error, off.max().item() if len(off) else 0.0)
    if not worst > LOOSE:
        return None
    lying = f"; the distance of {name_rows(far)} to the equilibrium is up to {off.max():.0%}" if far.any() else ""
    return Finding(
        "tolerance too loose for the gradient",
        f"at rtol={look.layer.rtol:g} the error of the iterate alone changes the exact gradient by {error:.0%}{lying}",
        f"Lower rtol to about {look.layer.rtol * LOOSE / worst / 5:.0e}; compare_gradients shows error against rtol",
    )
