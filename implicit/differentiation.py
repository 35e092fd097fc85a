"""From a solve to a tensor in autograd's graph.

There are three ways through a solve, all by the equation `u = Jᵀu + g`. They differ in how f is given where J is
needed:

* tracked: an ordinary backward pass uses one evaluation of f at the solution, made here with its graph (`_tracked`);
* pure: a backward pass that is differentiated again evaluates f as a function of its tensors (`gradients.higher`);
* transformed: torch.func and forward mode get that function from the start (`_transformed_solve`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain, compress

import torch
from torch import Tensor, nn

from solvers import Captured, Eager, State
from solvers.iterate import iterate
from solvers.kept import Keep
from solvers.problem import Problem
from solvers.root_problem import RootProblem
from solvers.settings import Settings
from solvers.solution import Outcome
from solvers.state import tree_leaves, unhooked, usable

from .compiled import twice_differentiable
from .coupling import coupling
from .functorch import followed, transformed
from .gradients import Gradient
from .gradients.base import Evaluation, check_gradient, with_value
from .gradients.contract import attached, report_of
from .graph import computed_from, leaves, radius_from_graph, saved_through_hooks, unit_at
from .logs import current_logs
from .pure import own_modules
from .pure_problem import PureProblem
from .references import remedy
from .reports import Reports
from .suitability import warn_of_chance, warn_of_coupling, warn_of_stale_recording, warn_of_unsuitable


def differentiable_solve(
    name: str,
    owner: object,
    problem: Problem,
    z0: State,
    gradient: Gradient,
    settings: Settings,
    at: tuple[int, ...] = (),
) -> tuple[State, ...]:
    """The iterates after the numbers of steps in `at`, then the solution, with the graph that the policy gives it.

    Args:
        name, owner: the name for records and warnings, and the layer or function itself.
        problem, z0, gradient, settings: what to solve and differentiate, from where, and how.
        at: numbers of steps.
    """
    problem.told = isinstance(problem.f, nn.Module) and warn_of_unsuitable(problem.f)
    check_gradient(gradient)
    gradient = gradient.behind(settings)
    if isinstance(problem, RootProblem):
        gradient = gradient.for_root()
    layout = problem.layout
    reports = Reports(current_logs(), name, owner, tried=settings, gradient=gradient)
    if transformed():
        if at:
            raise RuntimeError("iterates have no rule for torch.func's transforms or forward-mode differentiation")
        return (layout.unflatten(_transformed_solve(problem, z0, gradient, settings, reports)),)
    tracked = torch.is_grad_enabled()
    hooked = tracked and saved_through_hooks()
    # where f makes states exact one by one, its Jacobian is nilpotent, and a radius says nothing
    measurable = tracked and not (hooked or problem.told) and settings.solver.exact_after is None
    keep = Keep(histories=tracked and gradient.remembers, iterates=at)
    start = usable(layout.flatten(z0))
    # a cell that takes gradients inside saves tensors in every step: their number is no concern of a checkpoint
    with torch.no_grad(), unhooked() if hooked else nullcontext():
        outcome = iterate(problem, start, settings, keep=keep, checked=tracked)
    if problem.autocast is not None:
        torch.clear_autocast_cache()  # tracked evaluations must not reuse weights that were cast without a graph
    if tracked:
        point, image = _tracked(problem, gradient, outcome.value)
        if not _holds(problem, outcome, image.detach(), settings):
            outcome = _solved_again(problem, start, settings, keep, outcome, image.detach())
            point, image = _tracked(problem, gradient, outcome.value)
    reports._replace(told=problem.told).enter(
        "forward",
        outcome.converged,
        lambda: outcome.solution(problem, settings.solver),
        lambda: radius_from_graph(image, point, problem) if measurable and bool(image.isfinite().all()) else None,
    )
    if at:
        outcome = replace(outcome, iterates=_gone_on(problem, start, settings, outcome, at))
    if not tracked or not _depends_on_more(image, point, start, problem):
        return tuple(layout.unflatten(value.clone()) for value in (*outcome.iterates, outcome.value))
    evaluation = Evaluation(
        problem,
        start,
        point,
        image,
        partial(PureProblem.of, problem),
        report_of(reports._replace(told=problem.told), gradient),
        settings.solver,
        outcome,
        hooked,
    )
    early = (with_value(problem(iterate), iterate, twice=False) for iterate in outcome.iterates)
    return tuple(layout.unflatten(value) for value in (*early, attached(gradient, evaluation)))


def _gone_on(
    problem: Problem, start: Tensor, settings: Settings, outcome: Outcome, at: tuple[int, ...]
) -> list[Tensor]:
    """The iterates at these steps; for rows that had stopped earlier, from a solve in which no row stops."""
    stopped = [torch.from_numpy((outcome.rows.steps <= step) | problem.coupled) for step in at]
    if not any(map(torch.any, stopped)):
        return outcome.iterates
    on = max(at) + 1  # a step evaluates f at one iterate; the start is the first
    settings = replace(settings, min_steps=on, max_steps=on, compact=False)
    with torch.no_grad():
        further = iterate(problem, start, settings, keep=Keep(iterates=at)).iterates
    return [
        torch.where(
            (rows.to(new.device) & new.isfinite().all(dim=1))[:, None],
            new,
            torch.where(old.isfinite().all(dim=1, keepdim=True), old, outcome.value),
        )
        for rows, new, old in zip(stopped, further, outcome.iterates, strict=True)
    ]


def _holds(problem: Problem, outcome: Outcome, image: Tensor, settings: Settings) -> bool:
    """Whether the tracked evaluation at the solution confirms the residuals that were found."""
    wide = torch.promote_types(image.dtype, torch.float32)
    _, norms = settings.measure.difference(image.to(wide), outcome.value.to(wide), robust=True)
    if isinstance(problem, RootProblem) and problem.unit is not None:
        norms = norms / problem.unit.T
    return bool(outcome.rule.holds(outcome.rows, *norms.double().cpu().numpy()).all())


def _solved_again(
    problem: Problem, start: Tensor, settings: Settings, keep: Keep, outcome: Outcome, image: Tensor
) -> Outcome:
    """If the solution fails when evaluated again: warn why, and solve again if rows are coupled or f has changed."""
    with torch.no_grad():
        if not torch.equal(problem(outcome.value).nan_to_num(), image.nan_to_num()):
            if not problem.told:
                warn_of_chance()
                problem.told = True
            return outcome
        if isinstance(settings.loop, Captured) and problem.captures:
            plain = replace(settings, loop=Eager(settings.loop.check_every))
            again = iterate(problem, start.detach(), plain, keep=keep)
            if _holds(problem, again, problem(again.value), settings):
                if not coupling(problem, outcome.value).any():
                    warn_of_stale_recording()
                    problem.captures.give_up()
                    return again
                outcome = again
        if not problem.told:
            warn_of_coupling()
            problem.told = True
        if not outcome.dropped:
            return outcome
        return iterate(problem, start.detach(), replace(settings, compact=False), keep=keep)


def _transformed_solve(problem: Problem, z0: State, gradient: Gradient, settings: Settings, reports: Reports) -> Tensor:
    """The solution under a transform of torch.func or forward mode: `root` gets every tensor that these may track."""
    pure, known = PureProblem.of(problem)
    start = usable(problem.layout.flatten(z0))
    tensors = (start, *known)
    with torch.enable_grad():
        blank = (torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in tensors)
        with _told_in_words():
            image = pure(*blank)
        if followed(image):
            parts = own_modules(problem.f) if isinstance(problem.f, nn.Module) else []
            raise RuntimeError(
                "f captures a tensor that a transform of torch.func, or autograd around it, tracks: "
                + (remedy(parts) or "pass it through args, or make f an nn.Module that has it as a parameter")
            )

    def find(start: Tensor, *tensors: Tensor) -> Tensor:
        at = pure.at(*tensors)
        outcome = iterate(at, start, settings)
        if isinstance(at, RootProblem):
            assert isinstance(pure.problem, RootProblem)
            pure.problem.unit = unit_at(at, outcome.value)
        reports.enter("forward", outcome.converged, lambda: outcome.solution(problem, settings.solver))
        return outcome.value.clone()

    def f(z: Tensor, start: Tensor, *tensors: Tensor) -> Tensor:
        with _told_in_words(), twice_differentiable():
            return pure(z, *tensors)

    with _told_in_words():
        return gradient.root(f, find, report_of(reports, gradient), *tensors)


@contextmanager
def _told_in_words() -> Iterator[None]:
    """Explain errors by the part of f that the transforms of torch.func cannot follow."""
    try:
        yield
    except RuntimeError as error:
        for sign, part in _UNKNOWN_TO_TRANSFORMS.items():
            if sign in str(error):
                raise RuntimeError(
                    f"the transforms of torch.func cannot follow {part} in f: remove it, or differentiate with "
                    "torch.autograd, which can"
                ) from error
        raise


_UNKNOWN_TO_TRANSFORMS = {
    "setup_context": "a full backward hook, or an autograd.Function without setup_context",
    "saved tensor hooks": "a checkpoint, or other hooks on saved tensors",
    "data pointer": "a conversion by .numpy()",
}


def _tracked(problem: Problem, gradient: Gradient, value: Tensor) -> tuple[Tensor, Tensor]:
    """The solution as the policy's point of evaluation, and its image with a graph."""
    computed = [arg for arg in tree_leaves(problem.args) if isinstance(arg, Tensor) and arg.grad_fn is not None]
    point = gradient.point(value, tuple(computed))
    if isinstance(problem, RootProblem) and not gradient.repeats_steps:
        problem.unit = unit_at(problem, value)
    image = problem(point)
    if point.requires_grad and computed:
        used = tuple(compress(computed, computed_from(image, computed).used))
        if len(used) < len(computed):  # one more evaluation spares every backward pass a visit to the others
            point = gradient.point(value, used)
            image = problem(point)
    return point, image


def _depends_on_more(image: Tensor, point: Tensor, start: Tensor, problem: Problem) -> bool:
    """Whether anything requires a gradient: the start, an argument, a parameter, or a tensor that f captures."""
    parameters = problem.f.parameters() if isinstance(problem.f, nn.Module) else ()
    for each in chain((start, *tree_leaves(problem.args)), parameters):
        if isinstance(each, Tensor) and each.requires_grad:
            return True
    return any(True for _ in leaves(image, point))
