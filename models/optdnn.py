"""Networks from first-order methods: unrolled or proximal (`OptDNN`), and of infinite depth (`OptDEQ`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from typing_extensions import Unpack

from implicit import Equilibrium, Gradient, ImplicitGradient, one_weight
from solvers import Anderson, Settings, Solution, SolveOptions, State
from solvers.settings import takes_settings

from .methods import Method, Streams, find_method
from .proximal import ProximalStep


class OptDNN(nn.Module):
    """A first-order method, run for one step per transform: `net(z0, *inputs) → z_L`.

        net = OptDNN("pgd", [(Dense(16, 32), MonotoneDense(16, 32)) for _ in range(8)], alpha=0.0)

    Args:
        method: a `Method`, or its key in `METHODS`.
        transforms: one per layer, a module `T(z, *inputs)` or a pair: `(smooth, proximal)` for `pgd` and `fista`,
            `(T1, T2)` for `ladmm` and `pdhg`. The same object in every place ties the weights.
        alpha: for `ppa`, `pgd`, `fista`: 1 evaluates the proximal transform explicitly, 0 implicitly.
        gradient, **options: of the equilibria of the proximal steps, as in `ProximalStep`.
    """

    @takes_settings()
    def __init__(
        self,
        method: Method | str,
        transforms: Sequence[Any],
        *,
        alpha: float = 1.0,
        gradient: Gradient = ImplicitGradient(),
        **options: Unpack[SolveOptions],
    ) -> None:
        Settings.of("OptDNN", options)
        super().__init__()
        self.method = find_method(method)
        proximal_step = partial(ProximalStep, alpha=alpha, gradient=gradient, **options)
        if not isinstance(transforms, (list, tuple, nn.ModuleList)) or not len(transforms):
            raise TypeError(f"transforms={transforms!r}: pass a non-empty list, one transform per layer")
        built: dict[int, nn.Module] = {}
        for transform in transforms:
            if id(transform) not in built:
                built[id(transform)] = self.method.transform(transform, alpha, proximal_step)
        self.transforms = nn.ModuleList(built[id(transform)] for transform in transforms)
        self.coefficients = self.method.coefficients(len(transforms))

    def forward(self, z0: Tensor, *inputs: Tensor) -> Tensor:
        """`z_L`, (batch, …) like z0; the inputs go to every transform."""
        streams = self.method.start(z0)
        with one_weight(self):
            for k, transform in enumerate(self.transforms):
                streams = self.method.move(streams, transform, self.coefficients.at(k), inputs)
        return streams[0]

    if TYPE_CHECKING:  # a module's call is typed Any
        __call__ = forward

    def extra_repr(self) -> str:
        return f"{self.method}, {len(self.transforms)} layers"


class OptDEQ(nn.Module):
    """The infinitely deep network of one tied step, `net(x) → z*`, with x injected: `z = step(z, T(z, x))`.

    Momentum changes the path, not the equilibrium: all single-transform methods share `T(z*, x) = 0`. It is found if
    the step contracts, as it does for `OptDEQ("pgd", (Fidelity(), ContractiveDense(16, 64, inputs=16)))`, whose
    equilibrium is `z* = x + P(z*, x)`.

    Args:
        method: a `Method` with constant coefficients, or its key: `Nesterov(momentum=0.5)`, not the schedule. Its
            number of streams must not grow, so `dense` has no equilibrium.
        transform: a module `T(z, x)`, or a pair of them as in `OptDNN`.
        alpha: as in `OptDNN`.
        gradient, **options: as in `Equilibrium`; for alpha < 1 also of the solve within each step.
        initial: `initial(x)` makes `z0`; None: zeros like x.
    """

    @takes_settings()
    def __init__(
        self,
        method: Method | str,
        transform: Any,
        *,
        alpha: float = 1.0,
        gradient: Gradient = ImplicitGradient(),
        initial: Callable[..., Tensor] | None = None,
        **options: Unpack[SolveOptions],
    ) -> None:
        Settings.of("OptDEQ", options)
        super().__init__()
        method = find_method(method)
        name = type(method).__name__
        if not method.has_equilibrium:
            raise ValueError(f"{name} has no equilibrium: its streams grow from layer to layer")
        if not method.stationary:
            changing = method.changing()
            raise ValueError(
                f"{name}: {', '.join(changing)} changes from layer to layer, but an equilibrium needs constants: "
                f"{name}({changing[0]}=0.5)"
            )
        within = options.copy()
        within.setdefault("solver", Anderson())  # whatever solver the transform names
        proximal_step = partial(ProximalStep, alpha=alpha, gradient=gradient, **within)
        cell = TiedStep(method, method.transform(transform, alpha, proximal_step))
        self.equilibrium: Equilibrium[State] = Equilibrium(cell, gradient=gradient, **options)
        self.initial = initial

    def forward(self, x: Tensor, *, z0: State | None = None) -> Tensor:
        """`z*`, (batch, …) like x: the first of the method's streams. `z0` is a warm start for all of them."""
        z = self.equilibrium(x, z0=self._start(x) if z0 is None else z0)
        output: Tensor = z if isinstance(z, Tensor) else z[0]
        return output

    if TYPE_CHECKING:  # a module's call is typed Any
        __call__ = forward

    def solve(self, x: Tensor, *, z0: State | None = None) -> Solution:
        """The `Solution` for x, no graph; its value holds all streams of the method."""
        return self.equilibrium.solve(x, z0=self._start(x) if z0 is None else z0)

    def _start(self, x: Tensor) -> State:
        method: Method = self.equilibrium.cell.method  # type: ignore[assignment, union-attr]
        return _as_state(method.start(x.new_zeros(x.shape) if self.initial is None else self.initial(x)))


class TiedStep(nn.Module):
    """One step of a method as a cell: streams to streams."""

    def __init__(self, method: Method, transform: nn.Module) -> None:
        super().__init__()
        self.method, self.transform, self.coefficients = method, transform, method.coefficients(1)

    def forward(self, state: State, *inputs: Tensor) -> State:
        streams: Streams = (state,) if isinstance(state, Tensor) else state
        return _as_state(self.method.move(streams, self.transform, self.coefficients.at(0), inputs))

    def extra_repr(self) -> str:
        return repr(self.method)


def _as_state(streams: Streams) -> State:
    return streams[0] if len(streams) == 1 else streams
