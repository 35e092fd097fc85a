"""Queries of autograd's graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from solvers.problem import Problem
from solvers.root_problem import RootProblem
from solvers.state import unhooked

from .draws import normal

PRODUCTS = 20
"""Number of products that estimate a spectral radius; the first half finds the direction."""


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leaf: Tensor, *above: Tensor) -> Tensor:
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)


def anchored(value: Tensor, *above: Tensor) -> Tensor:
    """The value as a point to differentiate at, inside the graph: a leaf would collect a `.grad` at every backward.

    Autograd searches the graph no further up than the point at which it differentiates. Placing the point downstream of
    the tensors `above`, which get no gradient from it, spares each product a walk through their history. Whatever is
    computed from the point must also be computed from these tensors, since a backward pass visits them.
    """
    anchor: Tensor = _Anchor.apply(value.detach().requires_grad_(), *above)
    return anchor


class Origin(NamedTuple):
    """What a tensor was computed from."""

    used: list[bool]
    """Which of the given sources, other than through one another."""
    others: list[Tensor]
    """Other leaves."""
    compiled: bool
    """Whether code of torch.compile took part."""


def computed_from(tensor: Tensor, sources: Sequence[Tensor]) -> Origin:
    """Which of the sources, and which other leaves; an anchored point and its history do not count."""
    edges = [(source.grad_fn, source.output_nr) for source in sources]
    inner = {edge for edge in edges if edge[0] is not None}
    leaves = {id(source) for source in sources if source.grad_fn is None and source.requires_grad}
    found: set[Any] = set()
    others: list[Tensor] = []
    seen: set[Any] = set()
    compiled = False
    queue: list[Any] = [(tensor.grad_fn, tensor.output_nr)]
    if tensor.grad_fn is None:
        queue = [_edge(tensor)] if tensor.requires_grad else []
    while queue:
        edge = queue.pop()
        node = edge[0]
        if edge in inner:
            found.add(edge)
            continue
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = type(node).__name__
        if kind == "AccumulateGrad":
            if id(node.variable) in leaves:
                found.add(id(node.variable))
            else:
                others.append(node.variable)
        elif not isinstance(node, _Anchor._backward_cls):
            compiled |= kind == "CompiledFunctionBackward"
            queue += node.next_functions
    used = [(id(source) if edge[0] is None else edge) in found for source, edge in zip(sources, edges)]
    if others:
        # hooks return leaves as other objects, whose gradients accumulate in the same place
        places = {_edge(other)[0]: other for other in others}
        for number, source in enumerate(sources):
            if not used[number] and id(source) in leaves and (place := _edge(source)[0]) in places:
                used[number] = True
                others = [other for other in others if other is not places[place]]
    return Origin(used, others, compiled)


def _edge(leaf: Tensor) -> Any:
    """The edge at which the gradient of a leaf accumulates."""
    if leaf.layout == torch.strided:
        return get_gradient_edge(leaf)[:2]
    copy: Any = leaf.clone()  # a sparse leaf has no views
    return copy.grad_fn.next_functions[0]


def saved_through_hooks() -> bool:
    """Whether the caller's hooks, such as those of a checkpoint, receive what autograd saves now."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def leaves(tensor: Tensor, *beyond: Tensor) -> Iterator[Tensor]:
    """The leaves that require gradients and from which the tensor was computed, except through those `beyond`."""
    if tensor.is_leaf:
        if tensor.requires_grad:
            yield tensor
        return
    seen: set[Any] = {known.grad_fn for known in beyond}
    queue: list[Any] = [tensor.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen or isinstance(node, _Anchor._backward_cls):
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        queue.extend(following for following, _ in node.next_functions)


def radius_from_graph(image: Tensor, point: Tensor, problem: Problem) -> float | None:
    """Estimate the spectral radius of the map's Jacobian, the largest of the rows, by a few products.

    None: unavailable. The image at the point is not evaluated again. Rows are taken together, so they may be coupled.
    """
    unit = problem.unit if isinstance(problem, RootProblem) else None
    if not (point.requires_grad and image.requires_grad):
        return None
    u, logarithms = torch.ones_like(image), []
    for _ in range(PRODUCTS):
        try:
            (product,) = torch.autograd.grad(image, point, u, retain_graph=True, allow_unused=True)
        except RuntimeError:  # whatever cannot be differentiated this often
            return None
        if unit is not None and product is not None:
            product = u + (product - u) / unit  # of z − F(z), from that of z − u F(z)
        length = 0.0 if product is None else float(torch.linalg.vector_norm(product.double()))
        if not 0 < length < math.inf:
            return None
        logarithms.append(math.log(length / float(torch.linalg.vector_norm(u.double()))))
        u = (product / length).to(u.dtype)
    return math.exp(sum(logarithms[PRODUCTS // 2 :]) / (PRODUCTS - PRODUCTS // 2))


def unit_at(problem: RootProblem, z: Tensor) -> Tensor:
    """(rows, 1), about 1 / ‖∂F/∂z‖ at z, for derivatives that have the same digits in any unit of F and z."""
    v = normal(z.shape, z)
    # a checkpoint would solve again for this product, and the transforms of torch.func know no such hooks
    with torch.enable_grad(), unhooked() if saved_through_hooks() else nullcontext():
        point = z.detach().requires_grad_()
        slope = torch.zeros_like(z)
        try:
            residual = problem.residual(point)
            if residual.requires_grad:
                (slope,) = torch.autograd.grad(residual, point, v, materialize_grads=True)
        except Exception:  # who needs this derivative of F will meet the error, and others must not
            return torch.ones_like(z[:, :1])
    unit = torch.linalg.vector_norm(v, dim=1, keepdim=True) / torch.linalg.vector_norm(slope, dim=1, keepdim=True)
    return torch.where(unit.isfinite() & (unit > 0), unit, 1).detach()


def refuse_hidden(name: str, problem: Problem, flat: Tensor, image: Tensor) -> None:
    """`ValueError` if f depends on z, but its image at `flat` has no graph to differentiate."""
    if image.requires_grad:
        return
    with torch.no_grad():
        moved = problem(flat.detach() + 1e-3 * (1 + flat.detach().abs()))
    if not torch.equal(moved.nan_to_num(), image.nan_to_num()):
        raise ValueError(
            f"{name}: f depends on z, but its image has no graph: remove torch.no_grad, detach and NumPy from f"
        )
