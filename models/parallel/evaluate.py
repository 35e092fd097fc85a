"""Evaluate a network in parallel over its depth: all layers at once, sweep after sweep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from implicit.graph import saved_through_hooks
from implicit.pure import every_module
from solvers import Picard, Solution, Solver

from ..optdnn import OptDNN
from .draws import default, sources
from .evaluation import Evaluation
from .holders import Holder, holders
from .newton import Newton, explained
from .own_state import OwnState
from .repeats import Repeats
from .stack import counted
from .writes import writes


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
    modules = every_module(net)
    if batched is None and (_any_writes(modules) or not (newton or _batching_pays(z0, len(net.transforms)))):
        batched = False
    if torch.compiler.is_compiling() and any(module.training and module._buffers for module in modules):
        evaluated: Any = torch.compiler.disable(parallel_evaluate)  # compiled code would not put buffers back
        options: Any = (
            {"sweeps": sweeps} if rtol is None else {"rtol": rtol, "solver": solver, "max_sweeps": max_sweeps}
        )
        return evaluated(net, z0, *inputs, newton=newton, batched=batched, **options)
    lazy = [each for each in modules if isinstance(each, LazyModuleMixin) and each.has_uninitialized_params()]
    if lazy:
        _initialise(net, z0, inputs, lazy)
    inputs = tuple(map(counted, inputs))
    evaluation = Evaluation(net, z0, inputs, Repeats(net, z0), newton, batched is not False)
    with evaluation.repeats.call(), explained(newton):
        if batched is None and saved_through_hooks() and _is_refused(evaluation):
            evaluation = replace(evaluation, batched=False)
        try:
            return _found(evaluation, sweeps, rtol, solver, max_sweeps)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the transforms differ, or do what torch.vmap does not support
            ends = type(error).__module__ == "torch.utils.checkpoint"  # a recomputation, in a checkpoint round the call
            if batched is not None or ends:
                raise
        return _found(replace(evaluation, batched=False), sweeps, rtol, solver, max_sweeps)


def _any_writes(modules: list[nn.Module]) -> bool:
    """Whether one of them changed what it keeps when it was last evaluated."""
    if torch.compiler.is_compiling():  # which would guard what is known of all modules, some of which may just be freed
        answer: Any = torch.compiler.disable(_any_writes)
        return bool(answer(modules))
    return any(map(writes, modules))


def _is_refused(evaluation: Evaluation) -> bool:
    """Whether the transforms cannot be evaluated as one; without a graph, as a checkpoint counts what is saved."""
    generator = default(evaluation.z0)
    before = generator.get()
    try:
        with torch.no_grad():
            replace(evaluation, repeats=Repeats(evaluation.net, evaluation.z0)).after(1)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # raised again, and told, where evaluation as one is asked for
        return True
    finally:
        generator.set(before)
    return False


def _found(
    evaluation: Evaluation, sweeps: int | None, rtol: float | None, solver: Solver, max_sweeps: int | None
) -> Tensor | Solution:
    if rtol is not None:
        return evaluation.to_tolerance(rtol, solver, max_sweeps)
    check_sweeps(sweeps, len(evaluation.net.transforms))
    assert sweeps is not None
    return evaluation.after(sweeps)


def _initialise(net: OptDNN, z0: Tensor, inputs: tuple[Tensor, ...], lazy: list[Any]) -> None:
    """Let lazy modules make their parameters and buffers, and all else be as it was."""
    others = [module for module in every_module(net) if module not in lazy]
    kept = holders(others, known=[Holder(module, "", module) for module in lazy])
    drawn = [(source, source.get()) for source in sources(others, kept)]
    training = [module for module in net.modules() if module.training]
    try:
        with torch.no_grad(), OwnState(kept).lent():
            net.eval()(z0, *inputs)
    finally:
        for module in training:
            module.training = True
        for source, state in drawn:
            source.set(state)


def check_sweeps(sweeps: Any, depth: int) -> None:
    """`ValueError` unless it is an integer from 1 to the depth."""
    if not isinstance(sweeps, int) or isinstance(sweeps, bool) or not 1 <= sweeps <= depth:
        raise ValueError(f"sweeps={sweeps!r} must be an integer from 1 to the network's depth, {depth}")


def _batching_pays(z0: Tensor, depth: int) -> bool:
    """Whether batching pays: always off the CPU; on it, if layers are many and cost less than their dispatch."""
    return z0.device.type != "cpu" or (depth >= 16 and z0.numel() <= 8192)
