"""Evaluate a network in parallel over its depth: all layers at once, sweep after sweep."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from implicit import ImplicitGradient, fixed_point, one_weight, record
from implicit.functorch import transformed
from solvers import Picard, Solution, Solver

from ..methods.base import scaled
from ..optdnn import OptDNN
from .gather import unread
from .guesses import astray, finite, known, size
from .likeness import UnlikeError
from .newton import Newton, explained
from .repeats import Repeats
from .sweeps import NewtonSweep, PlainSweeps, Sweep
from .trajectory import parts, recursion


@overload
def parallel_evaluate(
    net: OptDNN, z0: Tensor, *inputs: Tensor, sweeps: int, newton: Newton | None = ..., batched: bool | None = ...
) -> Tensor: ...
@overload
def parallel_evaluate(
    net: OptDNN,
    z0: Tensor,
    *inputs: Tensor,
    rtol: float,
    solver: Solver = ...,
    max_sweeps: int | None = ...,
    newton: Newton | None = ...,
    batched: bool | None = ...,
) -> Solution[Any]: ...
def parallel_evaluate(
    net: OptDNN,
    z0: Tensor,
    *inputs: Tensor,
    sweeps: int | None = None,
    rtol: float | None = None,
    solver: Solver = Picard(),
    max_sweeps: int | None = None,
    newton: Newton | None = None,
    batched: bool | None = None,
) -> Tensor | Solution:
    """`z_L` by iteration over the whole trajectory, for `sweeps` sweeps or to a tolerance.

    A sweep evaluates every transform at its current point `y_k`: all of them in one batched computation, and all
    resolvents of proximal steps in one solve. The method's linear recursion is one product with a triangular matrix.
    All outputs start at zero, so `sweeps=1` gives `z_0 + Σ w_k T_k(z_0)`, the form of the Para-Former. Since k sweeps
    make the first k layers exact, `sweeps=L` equals `net(z0)` to rounding; between them the error falls superlinearly
    for well-behaved networks.

    With a number of sweeps, gradients are those of the computation itself, and at K = L those of the serial network.
    With a tolerance they are the serial network's, by the implicit function theorem on the trajectory.

    Prefer it where the depth is large, the work of one layer leaves the machine idle, and few sweeps suffice: K sweeps
    do K times the arithmetic of the serial network.

    Args:
        net: the network; a proximal step counts as one transform.
        z0: (batch, …), the input of its first layer.
        inputs: (batch, …), further inputs of the transforms.
        sweeps: K in [1, L]; pass this or `rtol`.
        rtol: relative tolerance for the outputs of all transforms, for each row.
        solver: drives the sweeps towards the tolerance. `Picard()` is exact after L sweeps; others, such as
            `Anderson()`, are not, and pay only where layers contract.
        max_sweeps: limit on the sweeps towards the tolerance; None: L + 1, which suffice for `Picard()`.
        newton: `Newton()`, for sweeps that follow the transforms' Jacobians: fewer of them, for small widths.
        batched: True evaluates all transforms as one (`UnlikeError` if they are not alike), False one by one, None as
            one if they are alike and that is likely to be faster.

    Returns:
        (batch, …), like `net(z0, *inputs)`; with a tolerance a `Solution` whose `value` is that, with its gradient.
    """
    if not isinstance(net, OptDNN):
        raise TypeError(f"net is a {type(net).__name__}: pass an OptDNN")
    if newton is not None and not isinstance(newton, Newton):
        raise TypeError(f"newton={newton!r}: pass Newton(), Newton(diagonal=True, damping=0.1), or None")
    if (sweeps is None) == (rtol is None):
        raise TypeError(f"sweeps={sweeps} and rtol={rtol}: pass one of them, a number of sweeps or a tolerance")
    if rtol is None and (solver != Picard() or max_sweeps is not None):
        raise TypeError(
            f"solver={solver} and max_sweeps={max_sweeps} are for a tolerance: pass rtol= in place of sweeps="
        )
    if max_sweeps is not None and (not isinstance(max_sweeps, int) or isinstance(max_sweeps, bool) or max_sweeps < 1):
        raise ValueError(f"max_sweeps={max_sweeps!r} must be an integer of at least 1")
    if batched is None and not (newton or _batching_pays(z0, len(net.transforms))):
        batched = False
    repeats = Repeats(net, z0)
    with one_weight(net), explained(newton):
        if rtol is not None:
            try:
                return _solved(net, z0, inputs, repeats, rtol, solver, max_sweeps, newton, batched)
            except RuntimeError as error:
                if batched is not None or not _needs_one_by_one(error):
                    raise
            return _solved(net, z0, inputs, repeats, rtol, solver, max_sweeps, newton, False)
        check_sweeps(sweeps, len(net.transforms))
        assert sweeps is not None
        found = None
        if batched is not False or newton:
            try:
                found = _swept(net, z0, inputs, repeats, sweeps, newton, batched is not False)
            except (UnlikeError, RuntimeError) as error:
                if batched or not _needs_one_by_one(error):
                    raise
                if newton:
                    found = _swept(net, z0, inputs, repeats, sweeps, newton, False)
        output, gone = found or _one_by_one(net, z0, inputs, repeats, sweeps)
        if sweeps == len(net.transforms) and output.requires_grad and known(gone):
            with repeats.same():  # values recover from guesses that went astray, but gradients through these do not
                return net(z0, *inputs)
        return output


def _needs_one_by_one(error: Exception) -> bool:
    """Whether transforms cannot be evaluated as one: they differ, or hold what torch.vmap does not support."""
    signs = "vmap", "functorch", "Batching rule"
    return isinstance(error, UnlikeError) or any(sign in str(error) for sign in signs)


def check_sweeps(sweeps: Any, depth: int) -> None:
    """`ValueError` unless it is an integer from 1 to the depth."""
    if not isinstance(sweeps, int) or isinstance(sweeps, bool) or not 1 <= sweeps <= depth:
        raise ValueError(f"sweeps={sweeps!r} must be an integer from 1 to the network's depth, {depth}")


def _batching_pays(z0: Tensor, depth: int) -> bool:
    """Whether batching pays: always off the CPU; on it, if layers are many and cost less than their dispatch."""
    return z0.device.type != "cpu" or (depth >= 16 and z0.numel() <= 8192)


def _swept(
    net: OptDNN,
    z0: Tensor,
    inputs: tuple[Tensor, ...],
    repeats: Repeats,
    sweeps: int,
    newton: Newton | None,
    batched: bool,
) -> tuple[Tensor, Tensor | bool] | None:
    """The output, and whether guesses went astray; None if one overflowed and spoilt layers before it.

    Nothing is read from the device before the end. Where nothing can be read at all, NaN replaces spoilt outputs.
    """
    sweep = _sweep(net, z0, inputs, repeats, newton, batched)
    outputs, sizes = None, []
    for _ in range(sweeps):
        outputs = sweep(outputs)
        sizes.append(size(parts(outputs)))
    last = sweep.trajectory.last(z0, outputs)
    gone = astray(sizes)
    if newton:  # such a sweep discards what overflowed
        return last, gone
    kept = torch.stack(sizes).isfinite().all()
    if unread(kept):
        return torch.where(kept, last, torch.nan), gone
    whole, told = torch.stack((kept, gone)).tolist()
    return (last, told) if whole else None


def _sweep(
    net: OptDNN,
    z0: Tensor,
    inputs: tuple[Tensor, ...],
    repeats: Repeats,
    newton: Newton | None,
    batched: bool,
) -> Sweep:
    if newton is None:
        return Sweep(net, z0, inputs, repeats=repeats, batched=batched)
    return NewtonSweep(net, z0, inputs, newton, repeats=repeats, batched=batched)


def _one_by_one(
    net: OptDNN, z0: Tensor, inputs: tuple[Tensor, ...], repeats: Repeats, sweeps: int
) -> tuple[Tensor, Tensor]:
    """The same, one transform after the other."""
    coefficients = [net.coefficients.at(k) for k in range(len(net.transforms))]
    nothing = scaled(net.method.query(net.method.start(z0), coefficients[0]), 0.0)
    outputs, sizes = [nothing] * len(net.transforms), []
    for _ in range(sweeps):
        points, _ = recursion(net.method, z0, outputs, coefficients)
        with repeats.same():
            outputs = [
                scaled(transform(y, *inputs), c.step)
                for transform, y, c in zip(net.transforms, points, coefficients, strict=True)
            ]
        if sweeps == len(outputs):  # needed only then
            sizes.append(size([part for output in outputs for part in parts(output)]))
    return recursion(net.method, z0, outputs, coefficients)[1], astray(sizes)


def _solved(
    net: OptDNN,
    z0: Tensor,
    inputs: tuple[Tensor, ...],
    repeats: Repeats,
    rtol: float,
    solver: Solver,
    max_sweeps: int | None,
    newton: Newton | None,
    batched: bool | None,
) -> Solution[Any]:
    """The outputs of all layers as a fixed point, (batch, L, …), and `z_L` from them."""
    if transformed():
        raise RuntimeError(
            "parallel_evaluate(rtol=…) has no rule for torch.func's transforms or forward-mode differentiation: pass "
            "sweeps=, or differentiate with torch.autograd"
        )
    depth = len(net.transforms)

    try:
        sweep = _sweep(net, z0, inputs, repeats, newton, batched is not False)
    except UnlikeError:
        if batched:
            raise
        sweep = _sweep(net, z0, inputs, repeats, newton, False)

    def swap(outputs: Any) -> Any:
        swapped = tuple(part.movedim(0, 1) for part in parts(outputs))
        return swapped if isinstance(outputs, tuple) else swapped[0]

    def swept(net: OptDNN, outputs: Any) -> Any:  # warnings are issued once per network
        return swap(sweep(finite(swap(outputs))))

    # before `depth` sweeps the residual need not fall
    exact = PlainSweeps(exact_after=depth)
    if solver == Picard():
        solver = exact
    nothing = scaled(sweep.trajectory.points(z0.detach(), None), 0.0)
    with record() as log:
        outputs = fixed_point(
            partial(swept, net),
            swap(nothing),
            solver=solver,
            gradient=ImplicitGradient(exact, rtol=min(rtol, 1e-6), max_steps=depth + 1),
            rtol=rtol,
            atol=0.0,
            max_steps=depth + 1 if max_sweeps is None else max_sweeps,
        )
    return replace(log.forward[-1].solution, budget=exact.budget, value=sweep.trajectory.last(z0, swap(outputs)))
