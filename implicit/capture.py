"""What `solvers.Captured` records of a layer: its cell and its vector–Jacobian products, as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solvers.loops.captures import Source
from solvers.problem import Problem
from solvers.state import Layout, tree_leaves, unhooked

from .pure import Known, own_modules, own_tensors
from .pure_problem import PureProblem

_PLAIN = {bool, int, float, str, torch.dtype, torch.device, type(None)}


def forward_source(problem: Problem) -> Source | None:
    """The source of a forward solve; None unless f is a module, since a function may read tensors unknown to us."""
    f, args = problem.f, problem.args
    if not isinstance(f, nn.Module):
        return None
    parts = own_modules(f)
    given = {id(leaf): leaf for leaf in tree_leaves(args) if Known.has_place(leaf)}
    known = [*given.values(), *(tensor for tensor in own_tensors(parts) if id(tensor) not in given)]
    return _source(f, "forward", parts, args, known, (), lambda: PureProblem.of(problem)[0], _at)


def _at(at: PureProblem, filled: Sequence[Tensor], own: Sequence[Tensor]) -> Problem:
    return at.at(*filled)


def backward_source(pure: PureProblem, known: Sequence[Tensor], point: Tensor, shift: Tensor) -> Source | None:
    """The source of the solve of `u = Jᵀu + shift`, with J the Jacobian of the pure function at the point.

    The recording holds one evaluation of f with a graph, and the products with its Jacobian.
    """
    f = pure.problem.f

    def build(at: PureProblem, filled: Sequence[Tensor], own: Sequence[Tensor]) -> Problem:
        point, shift = own
        z = point.detach().requires_grad_()
        # saving through hooks skips the check for in-place changes: each solve replays the evaluation first
        with torch.enable_grad(), unhooked():
            image = at(z, *(tensor.detach() for tensor in filled))

        def adjoint(u: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(image, z, u, retain_graph=True, allow_unused=True)
            return shift if product is None else product + shift

        return Problem(adjoint, (), Layout(shift))

    if not isinstance(f, nn.Module) or point.dtype != shift.dtype:
        return None
    own = point.detach(), shift
    return _source(f, "backward", own_modules(f), pure.problem.args, known, own, lambda: pure, build)


def _source(
    f: nn.Module,
    way: str,
    parts: Sequence[nn.Module],
    args: Any,
    known: Sequence[Tensor],
    own: tuple[Tensor, ...],
    pure: Callable[[], PureProblem],
    build: Callable[[PureProblem, Sequence[Tensor], Sequence[Tensor]], Problem],
) -> Source | None:
    """The source of a solve with the module f.

    Args:
        f, parts, args: the module, its submodules, and its arguments.
        way, own: whether forward or backward, and the tensors that only this way needs.
        known: the tensors of the pure function that `pure` makes of f, whose parts and arguments they belong to.
        build: makes the problem from this function with other arguments, tensors in place of `known`, and of `own`.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in parts):
        return None  # it hides its tensors
    # an optimiser updates parameters in place; tensors that are computed or passed in have new addresses each time
    stay = {id(tensor) for part in parts for tensor in (*part._parameters.values(), *part._buffers.values())}
    changing = [place for place, tensor in enumerate(known) if id(tensor) not in stay]
    leaves = tree_leaves(args)
    whole = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and not Known.has_place(leaf)]
    numbers = tuple(None if isinstance(leaf, Tensor) or Known.places(leaf) else _kind(leaf) for leaf in leaves)

    def made() -> Callable[..., Problem]:
        function, kept = pure().without_captures(), [tensor.detach() for tensor in known]
        for place in changing:
            kept[place] = kept[place].new_empty(0)  # keeps neither the tensor nor its graph

        def built(*tensors: Tensor) -> Problem:
            mine, rest, filled = tensors[: len(own)], tensors[len(own) :], list(kept)
            for place, tensor in zip(changing, rest[: len(changing)], strict=True):
                filled[place] = tensor
            replaced = dict(zip(whole, rest[len(changing) :], strict=True))
            return build(function.with_args(lambda place, leaf: replaced.get(place, leaf)), filled, mine)

        return built

    tensors = (*own, *(known[place].detach() for place in changing), *(leaves[place] for place in whole))
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()  # tensors made in these cannot serve elsewhere
    signature = way, numbers, tuple(changing), tuple(map(_state, parts)), modes
    return Source(f"{type(f).__name__}, {way}", signature, tensors, made)


def _state(part: nn.Module) -> Hashable:
    """What a recording of a module relies on: its tensors' addresses, its mode, its hooks, its plain attributes."""
    own = (*part._parameters.items(), *part._buffers.items())
    hooks = (*part._forward_hooks.items(), *part._forward_pre_hooks.items())
    attributes = [(name, value) for name, value in part.__dict__.items() if name[:1] != "_"]
    return id(part), *((name, _kind(value)) for name, value in (*own, *hooks, *attributes))


def _kind(value: Any) -> Hashable:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.dtype, value.stride()
    if isinstance(value, (tuple, list)):
        return tuple(map(_kind, value))
    if isinstance(value, dict):
        return tuple((_kind(key), _kind(item)) for key, item in value.items())
    return id(value)
