"""A backward pass that is differentiated again: the pure way through a solve.

The tracked evaluation cannot serve it, since its point is a constant. Instead, f is evaluated again, as a function of
everything that it depends on, and `root.pullback` treats u as the root of its own equation.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..compiled import twice_differentiable
from ..functorch import transformed
from ..graph import computed_from, leaves
from ..pure import own_modules
from ..pure_problem import PureProblem
from ..references import remedy
from .root import Linear, pullback

SMALL = 2**14
"""Largest number of entries for which copying a tensor costs next to nothing."""


@dataclass(frozen=True)
class Sources:
    """What the tracked evaluation was computed from."""

    pure: PureProblem
    """The evaluation as a function of the tensors that the layer knows."""
    uses: list[bool]
    """Which of these tensors it used."""
    captured: tuple[Tensor, ...]
    """Other leaves that require gradients."""
    compiled: bool
    """Whether code of torch.compile took part."""
    constants: dict[int, Tensor]
    """Copies of small tensors without a gradient, by place: a cell may write counts, averages, iterates to buffers."""

    @classmethod
    def of(cls, pure: PureProblem, tensors: Sequence[Tensor], image: Tensor) -> Sources:
        origin = computed_from(image, tensors)
        small = {
            place: tensor.detach().clone()
            for place, (tensor, uses) in enumerate(zip(tensors, origin.used, strict=True))
            if not uses and tensor.numel() <= SMALL and tensor.layout == torch.strided
        }
        return cls(pure, origin.used, tuple(origin.others), origin.compiled, small)

    def visited(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors except for the constants; those that were not used are detached, if they have a graph.

        A backward pass visits everything upstream of a node, even where it passes no gradient on.
        """
        return [
            tensor if uses or not tensor.requires_grad else tensor.detach()
            for place, (tensor, uses) in enumerate(zip(tensors, self.uses, strict=True))
            if place not in self.constants
        ]

    def all(self, visited: Sequence[Tensor]) -> list[Tensor]:
        """All tensors, given the visited ones; constants are fresh copies, which an evaluation may change."""
        given = iter(visited)
        fresh = {place: constant.clone() for place, constant in self.constants.items()}
        return [fresh[place] if place in fresh else next(given) for place in range(len(self.uses))]

    def wanted(self, visited: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which of all tensors, then of those captured, need a gradient, given this for the visited and captured."""
        given = iter(visited)
        known = [False if place in self.constants else next(given) for place in range(len(self.uses))]
        return (*known, *given)

    def refuse_compiled(self) -> None:
        """Raise where the backward pass runs through compiled code, which has no second derivatives."""
        if self.compiled:
            raise RuntimeError(
                "second derivatives need those of the cell's backward pass, which a compiled cell does not have: set "
                "torch.compiler.set_stance('force_eager') around the layer, or leave the cell uncompiled"
            )

    def direct(self, z: Tensor, image: Tensor, tensors: Sequence[Tensor], what: str) -> list[int]:
        """Which of the tensors f uses directly, whatever is passed in for them, as a replaced `forward` may.

        Raises RuntimeError if f, evaluated again, does not use what it did before.
        """
        wants = (True, *self.uses)
        known = [tensor.detach().requires_grad_(want) for want, tensor in zip(wants, (z, *tensors), strict=True)]
        with torch.enable_grad(), twice_differentiable():
            again = self.pure(*known)
        self.pure.confirm(image, again, (z, *tensors))
        uses, captured, _ = computed_from(again, (*known[1:], *tensors))
        handed_in, direct = uses[: len(tensors)], uses[len(tensors) :]
        missing = [leaf for leaf in captured if not any(leaf is other for other in (known[0], *self.captured))]
        if missing:
            refuse_captured(self.pure, missing, what)
        lost = [place for place, uses in enumerate(self.uses) if uses and not (handed_in[place] or direct[place])]
        lost += [place for place, leaf in enumerate(self.captured) if not any(leaf is other for other in captured)]
        if lost:
            raise RuntimeError(
                f"{what} evaluate f again, and it no longer depends on every tensor that it used in the forward pass: "
                "do not replace its parameters, or the tensors that it captures, before the backward pass"
            )
        return [place for place, uses in enumerate(direct) if uses]


def differentiable(
    linear: Linear,
    sources: Sources,
    z: Tensor,
    image: Tensor,
    tensors: Sequence[Tensor],
    wanted: tuple[bool, ...],
    grad: Tensor,
) -> list[Tensor | None]:
    """The gradients of the tensors, then of the captured ones, with a graph; None where none is wanted."""
    what = "second derivatives through an equilibrium"
    direct = sources.direct(z, image, tensors, what)
    captured = (*(tensors[place] for place in direct), *sources.captured)
    if captured and transformed():
        refuse_captured(sources.pure, captured, f"{what} by a transform of torch.func")
    chosen = [place for place, wants in enumerate(wanted[: len(tensors)]) if wants]
    others = [tensor.detach() for tensor in tensors]

    def f(z: Tensor, *some: Tensor) -> Tensor:
        replaced = dict(zip(chosen, some, strict=True))
        replaced |= {place: constant.clone() for place, constant in sources.constants.items()}
        everything = (replaced.get(place, tensor) for place, tensor in enumerate(others))
        with twice_differentiable():
            image: Tensor = sources.pure(z, *everything)
        return image

    some = tuple(tensors[place] for place in chosen)
    found = pullback(f, linear, z, some, grad, captured)
    gradients: list[Tensor | None] = [None] * len(wanted)
    for place, gradient in zip(chosen, found):
        gradients[place] = gradient
    for place, gradient in zip((*direct, *range(len(tensors), len(wanted))), found[len(chosen) :], strict=True):
        known = gradients[place]
        gradients[place] = gradient if known is None else known + gradient
    return gradients


def refuse_captured(pure: PureProblem, captured: Sequence[Tensor], what: str) -> None:
    """Raise, naming the tensors that f captures."""
    f = pure.problem.f
    module = f if isinstance(f, nn.Module) else nn.Module()
    own = [name for name, parameter in module.named_parameters() for leaf in captured if parameter is leaf]
    if own:
        raise RuntimeError(
            f"{what} would miss {', '.join(own)}: f uses these parameters whatever is passed in for them, because "
            f"{remedy(own_modules(module)) or 'it refers to the module that has them in some other way'}"
        )
    names = "; ".join(_described(f, leaf) for leaf in captured)
    raise RuntimeError(
        f"{what} would miss what f captures: {names}. Pass such tensors through args, or make f an nn.Module that "
        "has them as parameters and uses nothing computed from them outside"
    )


def _described(f: Any, leaf: Tensor) -> str:
    """The variables of f that lead to the leaf, and its shape."""
    variables: dict[str, Any] = {}
    if inspect.isfunction(f):
        seen = inspect.getclosurevars(f)
        variables = {**seen.nonlocals, **seen.globals}
    names = [
        name
        for name, value in variables.items()
        if isinstance(value, Tensor) and any(leaf is source for source in leaves(value))
    ]
    return f"{', '.join(names) or 'a tensor'} (a leaf of shape {tuple(leaf.shape)}, {leaf.dtype})"
