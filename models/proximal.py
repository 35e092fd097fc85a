"""The implicit step as a transform: any method that takes a transform takes a proximal step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from typing_extensions import Unpack

from implicit import Equilibrium, Gradient, ImplicitGradient
from solvers import Anderson, SolveOptions
from solvers.settings import takes_settings


class ProximalStep(nn.Module):
    """`T̃(y) = z⁺ − y` where `z⁺ = v + P(alpha·y + (1 − alpha)·z⁺)` and `v = y + G(y)`.

    At alpha = 1 the step is explicit, `T̃ = G + P`. At alpha = 0 it is the proximal gradient step
    `z⁺ = (I − P)⁻¹(y + G(y))`, and between them lies the one-leg θ-method. Gradient descent with this transform is
    `ppa` (`smooth=None`) or `pgd`; Nesterov's method with it is `fista`.

    The step has a unique solution when `(1 − alpha)·Lip(P) < 1`, or when −P is monotone, and the solver finds it
    cheaply in the first case.

    Args:
        smooth: module `G(y, *inputs)`, or None for G = 0.
        proximal: module `P(z, *inputs)`; its parameters are the same for every alpha.
        alpha: in [0, 1].
        gradient, **options: of the equilibrium inside, as in `Equilibrium`; unused at alpha = 1. The default solver is
            P's attribute `solver`, if there is one, as in the monotone transforms.
    """

    @takes_settings()
    def __init__(
        self,
        smooth: nn.Module | None,
        proximal: nn.Module,
        *,
        alpha: float = 0.0,
        gradient: Gradient = ImplicitGradient(),
        **options: Unpack[SolveOptions],
    ) -> None:
        super().__init__()
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha!r} must lie in [0, 1]: 1 is explicit, 0 implicit")
        for name, module in (("smooth", smooth), ("proximal", proximal)):
            if not isinstance(module, nn.Module) and not (module is None and name == "smooth"):
                raise TypeError(f"{name} is a {type(module).__name__}: pass an nn.Module")
        self.alpha, self.smooth = alpha, smooth
        options.setdefault("solver", getattr(proximal, "solver", Anderson()))
        self.resolvent = Equilibrium(
            Resolvent(proximal, alpha),
            gradient=gradient,
            initial=_from_v,
            **options,
        )

    def forward(self, y: Tensor, *inputs: Tensor) -> Tensor:
        """`T̃(y)`, (batch, …) like y."""
        v = y if self.smooth is None else y + self.smooth(y, *inputs)
        if self.alpha == 1:
            return v - y + self.proximal(y, *inputs)
        return self.resolvent(v, y, *inputs) - y

    if TYPE_CHECKING:  # a module's call is typed Any
        __call__ = forward

    @property
    def proximal(self) -> nn.Module:
        """P, held by the cell of the resolvent whatever alpha is, so that state_dicts are interchangeable."""
        cell: Resolvent = self.resolvent.cell  # type: ignore[assignment]
        return cell.proximal

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class Resolvent(nn.Module):
    """The cell `z ↦ v + P(alpha·y + (1 − alpha)·z)`, alpha < 1."""

    def __init__(self, proximal: nn.Module, alpha: float) -> None:
        super().__init__()
        self.proximal, self.alpha = proximal, alpha

    def forward(self, z: Tensor, v: Tensor, y: Tensor, *inputs: Tensor) -> Tensor:
        output: Tensor = v + self.proximal(z.lerp(y, self.alpha) if self.alpha else z, *inputs)
        return output


def _from_v(v: Tensor, *rest: Tensor) -> Tensor:
    return v.detach()
