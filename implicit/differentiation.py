"""From a solve to a tensor in autograd's graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from solvers import State
from solvers.agreement import agrees
from solvers.coupling import resolve, verified
from solvers.iteration import Keep
from solvers.problem import Problem, Settings, mapped, prepare
from solvers.rescue import iterate_and_rescue

from .explicit import Explicit
from .gradients import Gradient
from .gradients.base import Evaluation, with_value
from .gradients.root import followed, transformed
from .graph import computed_from, leaves
from .recording import Log, current_logs, report
from .suitability import warn_of_chance, warn_of_unsuitable


def differentiable_solve(
    name: str,
    f: Callable[..., State],
    z0: State,
    args: tuple[Any, ...],
    gradient: Gradient,
    settings: Settings,
    at: tuple[int, ...] = (),
) -> tuple[State, ...]:
    """The iterates after so many steps, and the solution, in the graph as the policy says; `name` is for records."""
    problem = prepare(f, z0, args, settings.compact)
    if isinstance(f, nn.Module):
        warn_of_unsuitable(f)
    layout = problem.layout
    logs = current_logs()
    if transformed():
        if at:
            raise RuntimeError("iterates have no rule for torch.func's transforms and forward-mode differentiation")
        return (layout.unflatten(_transformed_solve(problem, z0, gradient, settings, logs, name)),)
    tracked = torch.is_grad_enabled()
    keep = Keep(histories=tracked and gradient.remembers, iterates=at)
    with torch.no_grad():
        outcome = iterate_and_rescue(problem, layout.flatten(z0), settings, keep=keep)
    if problem.autocast is not None:
        torch.clear_autocast_cache()  # weights that were cast without a graph must not stand in for tracked ones
    start = layout.flatten(z0)  # afterwards, since a solve may have widened the working dtype
    # the tracked evaluation doubles as the check that dropping rows was sound
    point = image = outcome.value
    evaluate = partial(_tracked, problem, gradient, args) if tracked else lambda value: (value, problem(value))
    if tracked or outcome.dropped:
        point, image = evaluate(outcome.value)
        if not agrees(outcome, image.detach(), problem.rounding, settings):
            if outcome.dropped:
                with torch.no_grad():
                    outcome = resolve(problem, start.detach(), settings, outcome, keep)
                point, image = evaluate(outcome.value)
            else:
                warn_of_chance()
    if logs or outcome.books.status.any():
        report(logs, name, "forward", outcome.solution(layout))
    if not tracked or not _depends_on_more(image, point, start, args, f):
        return tuple(layout.unflatten(value.clone()) for value in (*outcome.iterates, outcome.value))
    evaluation = Evaluation(
        problem,
        start,
        point,
        image,
        partial(Explicit.of, problem),
        partial(report, logs, name, "backward"),
        settings.solver,
        outcome,
    )
    early = (with_value(problem(iterate), iterate, twice=False) for iterate in outcome.iterates)
    return tuple(layout.unflatten(value) for value in (*early, gradient.attach(evaluation)))


def _transformed_solve(
    problem: Problem, z0: State, gradient: Gradient, settings: Settings, logs: tuple[Log, ...], name: str
) -> Tensor:
    """The same under a transform of torch.func or forward mode: everything that these follow is handed to `root`."""
    layout, (explicit, known) = problem.layout, Explicit.of(problem)
    start = layout.flatten(z0)
    tensors = (start, *known)
    with torch.enable_grad():
        blank = (torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in tensors)
        if followed(explicit(*blank)):
            raise RuntimeError(
                "f captures a tensor that a transform of torch.func, or autograd around it, follows: pass it through "
                "args, or make f an nn.Module that has it as a parameter"
            )

    def find(start: Tensor, *tensors: Tensor) -> Tensor:
        outcome = verified(explicit.at(*tensors), start, settings)
        report(logs, name, "forward", outcome.solution(layout))
        return outcome.value.clone()

    def f(z: Tensor, start: Tensor, *tensors: Tensor) -> Tensor:
        return explicit(z, *tensors)

    return gradient.root(f, find, partial(report, logs, name, "backward"), *tensors)


def _tracked(problem: Problem, gradient: Gradient, args: tuple[Any, ...], value: Tensor) -> tuple[Tensor, Tensor]:
    """The solution as the policy has it, and its image with a graph."""
    computed: list[Tensor] = []
    mapped(args, lambda arg: computed.append(arg) if isinstance(arg, Tensor) and arg.grad_fn is not None else None)
    point = gradient.point(value, tuple(computed))
    image = problem(point)
    if point.requires_grad and computed:
        used = tuple(compress(computed, computed_from(image, computed)))
        if len(used) < len(computed):  # it is worth an evaluation that no backward pass visits the others
            point = gradient.point(value, used)
            image = problem(point)
    return point, image


def _depends_on_more(
    image: Tensor, point: Tensor, start: Tensor, args: tuple[Any, ...], f: Callable[..., State]
) -> bool:
    """Whether a gradient has anywhere to go: to an argument, a parameter, or a tensor that f captures."""
    if start.requires_grad or any(isinstance(a, Tensor) and a.requires_grad for a in args):
        return True
    if isinstance(f, nn.Module) and any(p.requires_grad for p in f.parameters()):
        return True
    return any(True for _ in leaves(image, point))
