"""What `solvers.Captured` records of a layer: its cell and its vector–Jacobian products, as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from solvers.loops.captures import Source
from solvers.loops.recording import RecordingError
from solvers.problem import Problem
from solvers.state import Layout, flattened, tree_leaves, unhooked

from .keys import input_key, module_key, order_key, tensor_key_on
from .pure import Known, is_ready, obstacle, own_modules, own_tensors
from .pure_problem import PureProblem
from .torch_state import settings_key


def forward_source(problem: Problem) -> Source | None:
    """The source of a forward solve; None for a function, which may read unknown tensors, and for lazy parameters.

    Raises RecordingError for other modules that may.
    """
    f = problem.f
    parts = own_modules(f) if isinstance(f, nn.Module) else []
    if not parts or not is_ready(parts):
        return None
    if reason := obstacle(parts):
        raise RecordingError(reason)
    given = {id(leaf): leaf for leaf in tree_leaves(problem.args) if Known.has_place(leaf)}
    known = [*given.values(), *(tensor for tensor in own_tensors(parts) if id(tensor) not in given)]
    tensor_key = tensor_key_on(problem.layout.device)
    key = tuple([module_key(part, type(part), part.__dict__, tensor_key) for part in parts])
    return _source(problem, "forward", parts, key, known, (), lambda: PureProblem.of(problem)[0], _at)


def hindrance(problem: Problem, z: Tensor) -> str | None:
    """Why the problem cannot be recorded, as far as one evaluation at z shows; None if nothing speaks against it."""
    try:
        source = forward_source(problem)
        if source is not None:
            with torch.no_grad():
                source.build()(*source.tensors)(z)
    except Exception as error:  # whatever a user's objects raise
        return str(error)
    return None


def _at(at: PureProblem, filled: Sequence[Tensor], own: Sequence[Tensor]) -> Problem:
    return at.at(*filled)


def backward_source(
    pure: PureProblem, known: Sequence[Tensor], point: Tensor, shift: Tensor, autocast: torch.dtype | None = None
) -> Source | None:
    """The source of the solve of `u = Jᵀu + shift`, with J the Jacobian of the pure function at the point.

    The recording holds one evaluation of f with a graph, and the products with its Jacobian. None if what f relied on
    in the forward pass has changed since: the graph of that pass alone can tell how it was. The autocast is that of the
    backward pass, under which it takes products.
    """

    def build(at: PureProblem, filled: Sequence[Tensor], own: Sequence[Tensor]) -> Problem:
        point, shift = own
        z = point.detach().requires_grad_()
        try:
            # saving through hooks skips the check for in-place changes: each solve replays the evaluation first
            with torch.enable_grad(), unhooked():
                image = at(z, *(tensor.detach() for tensor in filled))
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            # torch.func.grad in f takes no hooks: such tensors do not count changes of the original ones
            z = z.data.requires_grad_()
            with torch.enable_grad():
                image = at(z, *(tensor.data for tensor in filled))

        def adjoint(u: Tensor) -> Tensor:
            if not image.requires_grad:
                return shift
            (product,) = torch.autograd.grad(image, z, u, retain_graph=True, allow_unused=True)
            return shift if product is None else product + shift

        problem = Problem(adjoint, (), Layout(shift))
        problem.autocast = autocast
        return problem

    module = pure.module
    if torch.is_anomaly_enabled() and torch.is_anomaly_check_nan_enabled():
        return None  # each product would wait for a check on the host
    if module is None or not module.is_open or point.dtype != shift.dtype or (key := pure.key()) is None:
        return None
    own = point.detach(), shift
    parts = [part.module for part in module.parts]
    return _source(pure.problem, "backward", parts, key, known, own, lambda: pure, build)


def _source(
    problem: Problem,
    way: str,
    parts: Sequence[nn.Module],
    key: Hashable,
    known: Sequence[Tensor],
    own: tuple[Tensor, ...],
    pure: Callable[[], PureProblem],
    build: Callable[[PureProblem, Sequence[Tensor], Sequence[Tensor]], Problem],
) -> Source:
    """The source of a solve of a problem whose f is a module; raises RecordingError for inputs that prevent it.

    Args:
        problem: the forward problem.
        way, own: whether forward or backward, and the tensors that only this way needs.
        parts, key: the modules of f, and the key of what they were.
        known: the tensors of the pure function that `pure` makes of f, whose parts and arguments they belong to.
        build: makes the problem from this function with other arguments, tensors in place of `known`, and of `own`.
    """
    leaves, structure = flattened(problem.args)
    whole = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and not Known.has_place(leaf)]
    # an optimiser updates parameters in place; tensors that are computed or passed in have new addresses each time. An
    # evaluation may write to buffers, which a backward pass leaves alone; sparse ones cannot be copied into place
    stay = {id(tensor) for part in parts for tensor in part._parameters.values()}
    for part in parts:
        owned = [tensor for tensor in part._buffers.values() if tensor is not None]
        stay |= {id(tensor) for tensor in owned if way == "forward" or tensor.layout != torch.strided}
    changing = [place for place, tensor in enumerate(known) if id(tensor) not in stay]
    copied = *(known[place].detach() for place in changing), *(leaves[place] for place in whole)
    if sparse := [tensor for tensor in copied if tensor.layout != torch.strided]:
        raise RecordingError(f"an input, or a weight that is computed, is sparse ({sparse[0].layout})")
    places = {id(tensor): place for place, tensor in enumerate(known)}
    device = problem.layout.device
    tensor_key = tensor_key_on(device)
    inputs = (
        structure,
        order_key(problem.args),
        *[(Tensor, places.get(id(leaf))) if isinstance(leaf, Tensor) else input_key(leaf) for leaf in leaves],
        *[(type(tensor), tensor.stride()) for tensor in copied],
        *[tensor_key(tensor) for tensor in copied if tensor.device != device],
        *[tensor_key(tensor) for tensor in known if id(tensor) in stay],
        *changing,
    )

    def made() -> Callable[..., Problem]:
        function, kept = pure().without_captures(), [tensor.detach() for tensor in known]
        for tensor, original in zip(kept, known, strict=True):
            tensor.requires_grad_(way == "forward" and original.requires_grad)  # autocast keeps casts of no others
        function = function.with_args(lambda place, leaf: None if place in whole else leaf)
        for place in changing:
            kept[place] = kept[place].new_empty(0)  # keeps neither the tensor nor its graph

        first = True

        def built(*tensors: Tensor) -> Problem:
            nonlocal first
            mine, rest, filled = tensors[: len(own)], tensors[len(own) :], list(kept)
            for place, tensor in zip(changing, rest[: len(changing)], strict=True):
                filled[place] = tensor
            replaced = dict(zip(whole, rest[len(changing) :], strict=True))
            at = function.with_args(lambda place, leaf: replaced.get(place, leaf))
            at.watched, first = first, False  # the first one warms up
            return build(at, filled, mine)

        return built

    layout = problem.layout
    signature = way, key, inputs, layout.key, order_key(layout.example), problem.autocast, settings_key()
    return Source(f"{problem.name}, {way}", signature, (*own, *copied), made)
