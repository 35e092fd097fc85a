"""Checks of a layer's gradient, one for each fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers import ConvergenceError, Status
from solvers.rules.first_way import contradiction
from solvers.state import tree_leaves
from solvers.status import rtol_at_floor

from ..copies import copied
from ..coupling import as_one_row
from ..draws import normal
from ..gradients import ImplicitGradient
from ..graph import refuse_hidden
from ..logs import Log, record
from ..parametrized import one_weight
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
    of_inputs: str | None = None
    try:
        found, log = _gradients(look, inputs, wanted)
    except Exception as error:  # whatever the user's cell or policy raises
        of_inputs = f"{type(error).__name__}: {first_line(error)}"
        wanted = [parameter for parameter in look.layer.parameters() if parameter.requires_grad]
        try:  # the cell may not take inputs that require gradients, and need not, where nothing upstream is trained
            found, log = _gradients(look, look.inputs, wanted)
        except Exception:
            return Finding(
                "the backward pass fails", of_inputs, "Fix that and diagnose again; the other checks were made"
            )
    reached = set(look.layer.cell.parameters()) | {leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)}
    told = [gradient for tensor, gradient in zip(wanted, found) if tensor in reached]
    if told and len(look.value) and not any(gradient is not None and bool(gradient.any()) for gradient in told):
        return Finding(
            "no gradient",
            f"the gradient of all {len(told)} parameters and inputs is zero or missing",
            "The cell may be constant here, as behind dead activations"
            + (f"; or {policy(look)}'s attach or linear is at fault" if own_policy(look) else ""),
        )
    good = look.solution.converged | look.solution.floored
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
    failures = [
        (entry.solution, bad) for entry in log.backward for bad in [~entry.solution.converged & good] if bool(bad.any())
    ]
    if not failures:
        if of_inputs is not None:
            raise LeftOutError(f"that of the inputs cannot be computed, those of the parameters can: {of_inputs}")
        return None
    solution, bad = failures[0]
    largest, floored = solution.residual[bad].max(), not bool((bad & ~solution.floored).any())
    if own_policy(look):
        remedy = f"Give the solve of {policy(look)} more steps, or another solver"
    elif floored:
        rtol = rtol_at_floor(float(largest), solution.rounding)
        remedy = (
            f"That is the floor of {look.problem.autocast or look.problem.layout.dtype}: pass "
            f"gradient=ImplicitGradient(rtol={rtol:.0e}), or use a wider dtype"
        )
    else:
        remedy = (
            "Raise max_steps of ImplicitGradient, give it another solver, such as GMRES(), or choose how to treat such "
            "rows by unconverged="
        )
    evidence = f"the adjoint solve of {name_rows(bad)} stopped at a relative residual of {largest:.1e}"
    return Finding("backward solve not converged", evidence, remedy)


def _gradients(look: Look, inputs: tuple[Any, ...], wanted: Sequence[Tensor]) -> tuple[Sequence[Tensor | None], Log]:
    """The gradients of a random loss, none if the policy raises for rows that did not converge, and the solves."""
    with torch.enable_grad(), record() as log:
        flat = look.problem.layout.flatten(look.layer(*inputs, z0=look.z0))
        try:
            return torch.autograd.grad(flat, wanted, normal(flat.shape, flat), allow_unused=True), log
        except ConvergenceError:  # from Unconverged.RAISE; the log has the solve
            return (), log


def hidden(look: Look) -> Finding | None:
    """Whether autograd's derivative of the cell in z is that of finite differences along a random direction."""
    problem, z = look.problem.apart(), look.value
    if look.coupling.any():  # a step of each row's own length would not be one step of the batch
        problem, z = as_one_row(problem), z.reshape(1, -1)
    v = normal(z.shape, z)
    with torch.no_grad(), one_weight(look.layer.cell):
        image = problem(z)
        try:
            off, _ = contradiction(
                problem, problem, z, image, v, _product(problem, z, v), lambda v: _product(problem, z, v)
            )
        except RuntimeError:  # it cannot be differentiated twice, or not at all, which another check reports
            return None
    bad = off > 0
    if not bad.any():
        return None
    return Finding(
        "gradient that misses part of the cell",
        f"along a random direction, autograd's derivative of the cell at {name_rows(bad)} differs from finite "
        f"differences by up to {off.max():.0%}",
        "Take detach, torch.no_grad and NumPy out of the cell, and check the backward of functions of your own. If it "
        "is meant, as in a straight-through estimator, no policy is exact",
    )


def _product(f: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    """`J v` from reverse mode, zeros where the graph does not lead to z."""
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        image = f(point)
        u = torch.zeros_like(image, requires_grad=True)
        (pulled,) = torch.autograd.grad(image, point, u, create_graph=True, materialize_grads=True)
        if not pulled.requires_grad:
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(pulled, u, v, materialize_grads=True)
    return product


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
