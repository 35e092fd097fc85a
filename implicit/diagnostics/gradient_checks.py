"""Checks of a layer's gradient, one for each fault."""

from __future__ import annotations

from collections.abc import Sequence

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
from .findings import Finding, LeftOutError, Look, first_line, name_rows
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
    found: Sequence[Tensor | None] = ()
    with torch.enable_grad(), record() as log:
        try:
            flat = look.problem.layout.flatten(look.layer(*inputs, z0=look.z0))
            found = torch.autograd.grad(flat, wanted, normal(flat.shape, flat), allow_unused=True)
        except ConvergenceError:
            pass  # from Unconverged.RAISE; the log has the solve
        except Exception as error:  # whatever the user's cell or policy raises
            evidence = f"{type(error).__name__}: {first_line(error)}"
            return Finding(
                "the backward pass fails", evidence, "Fix that and diagnose again; the other checks were made"
            )
    if found and flat.numel() and not any(gradient is not None and bool(gradient.any()) for gradient in found):
        return Finding(
            "no gradient",
            f"the gradient of all {len(wanted)} parameters and inputs is zero or missing",
            "The cell may be constant here, as behind dead activations"
            + (f"; or {policy(look)}'s attach or linear is at fault" if own_policy(look) else ""),
        )
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
        "Raise max_steps of ImplicitGradient, give it another solver, or choose how to treat such rows by unconverged="
        if not own_policy(look)
        else f"Give the solve of {policy(look)} more steps, or another solver",
    )


def moved(look: Look) -> Finding | None:
    """Whether the value depends on the policy; those of this package never change it."""
    if not own_policy(look):
        return None
    start = look.layer.start(look.inputs, look.z0)
    with one_weight(look.layer.cell):
        plain = look.layer.solve(*look.inputs, z0=start).value
        with torch.enable_grad():
            attached = look.layer(*look.inputs, z0=start)
    plain, attached = (look.problem.layout.flatten(state).detach() for state in (plain, attached))
    difference = torch.linalg.vector_norm(attached - plain, dim=1)
    bad = difference > 100 * look.problem.rounding * torch.linalg.vector_norm(plain, dim=1)
    if not bad.any():
        return None
    return Finding(
        "gradient that changes the value",
        f"with gradients on, {name_rows(bad)} of the output differ by up to {difference[bad].max():.1e}",
        f"Return implicit.with_value(tracked, at.point, twice=False) from {policy(look)}.attach",
    )


def own_policy(look: Look) -> bool:
    """Whether the gradient is a policy that the user wrote."""
    gradient = getattr(look.layer, "gradient", None)
    return gradient is not None and not type(gradient).__module__.startswith("implicit.")


def policy(look: Look) -> str:
    return type(look.layer.gradient).__name__


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
