"""The four readings of a method, as objects that make the body of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from implicit import Gradient, ImplicitGradient
from solvers import Anderson, Eager, Loop, SolveOptions, Solver

from .blocks import Blocks
from .methods import Method, find_method
from .optdnn import OptDEQ, OptDNN
from .parallel import Parallel


@dataclass(frozen=True)
class Reading(ABC):
    """How a method becomes the body of a network, `body(z) → z`."""

    @abstractmethod
    def body(self, method: Method | str, blocks: Blocks, depth: int) -> nn.Module:
        """A module of `depth` layers made of `blocks`; `ValueError` where the method has no such reading."""


@dataclass(frozen=True)
class Explicit(Reading):
    """Unrolled: `OptDNN` with alpha = 1."""

    def body(self, method: Method | str, blocks: Blocks, depth: int) -> nn.Module:
        return _network(method, blocks, depth)


@dataclass(frozen=True)
class Implicit(Reading):
    """A solve in each layer: `OptDNN` with alpha < 1; for `ppa`, `pgd`, `fista`."""

    alpha: float = 0.0
    """In [0, 1)."""
    solver: Solver | None = None
    """Solver of the proximal steps; None: the transform's own, as in `ProximalStep`."""
    gradient: Gradient = ImplicitGradient()
    """Likewise."""
    rtol: float = 1e-4
    """Likewise."""
    max_steps: int = 100
    """Likewise."""
    loop: Loop = Eager()
    """Likewise."""

    def body(self, method: Method | str, blocks: Blocks, depth: int) -> nn.Module:
        method = find_method(method)
        options = SolveOptions(rtol=self.rtol, max_steps=self.max_steps, loop=self.loop)
        if self.solver is not None:
            options["solver"] = self.solver
        return OptDNN(
            method,
            [method.layer(blocks) for _ in range(depth)],
            alpha=self.alpha,
            gradient=self.gradient,
            **options,
        )


@dataclass(frozen=True)
class InfiniteDepth(Reading):
    """One tied layer of infinite depth, its input injected: `OptDEQ`, coefficients frozen; for all but `dense`."""

    solver: Solver = Anderson()
    """As in `Equilibrium`."""
    gradient: Gradient = ImplicitGradient()
    """Likewise."""
    rtol: float = 1e-4
    """Likewise."""
    max_steps: int = 100
    """Likewise."""
    loop: Loop = Eager()
    """Likewise."""
    initial: Callable[[Blocks], Callable[..., Tensor]] | None = None
    """From the blocks, a function that makes the first iterate from x, such as a `LearnedStart`; None: zeros."""

    def body(self, method: Method | str, blocks: Blocks, depth: int) -> nn.Module:
        """`depth` has no meaning here."""
        method = find_method(method)
        if method.has_equilibrium:
            method = method.frozen()
        return OptDEQ(
            method,
            method.tied(blocks),
            solver=self.solver,
            gradient=self.gradient,
            rtol=self.rtol,
            max_steps=self.max_steps,
            loop=self.loop,
            initial=None if self.initial is None else self.initial(blocks),
        )


@dataclass(frozen=True)
class Sweeps(Reading):
    """Parallel over depth: `Parallel` with `count` sweeps, or as many as there are layers if that is fewer."""

    count: int = 1
    """At least 1."""

    def body(self, method: Method | str, blocks: Blocks, depth: int) -> nn.Module:
        return Parallel(_network(method, blocks, depth), sweeps=min(self.count, depth))


def _network(method: Method | str, blocks: Blocks, depth: int) -> OptDNN:
    method = find_method(method)
    return OptDNN(method, [method.layer(blocks) for _ in range(depth)])
