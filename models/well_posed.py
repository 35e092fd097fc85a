"""Transforms P whose proximal step is well posed: `z = v + P(z)` has exactly one solution for every v.

Either P contracts, or −P is monotone. `torch.nn.utils.parametrizations.spectral_norm` bounds the norms, with four power
iterations each time the weight is used in training. It is exact for constant weights; while they change fast it
underestimates the norm, so the bound is slightly exceeded. For a k×k convolution it bounds the norm of the kernel as a
matrix; k times that bounds the convolution's own norm (Singla, Feizi, "Fantastic Four", ICLR 2021), so the kernel is
divided by k, which is safe and costs some range.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from solvers import Anderson, Monotone, Solver

from .transforms import check_odd, inject

_MONOTONE_ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus)


class _Contractive(nn.Module):
    """`P(z, x) = lipschitz · W₂ σ(W₁ z + U x + b)` with `‖W₁‖ = ‖W₂‖ = 1`."""

    def __init__(
        self, inner: nn.Module, outer: nn.Module, injection: nn.Module | None, taps: int, lipschitz: float
    ) -> None:
        super().__init__()
        _check_lipschitz(lipschitz)
        self.inner, self.outer, self.injection = _normalise(inner), _normalise(outer), injection
        self.bias = nn.Parameter(torch.zeros(next(inner.parameters()).shape[0]))
        self.scale, self.lipschitz = 1 / taps, lipschitz

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        bias = self.bias.view(-1, *[1] * (z.ndim - 2))
        hidden = inject(self.scale * self.inner(z) + bias, self.injection, inputs)
        output: Tensor = self.lipschitz * self.outer(hidden.relu())
        return output


class ContractiveDense(_Contractive):
    """`P(z, x) = lipschitz · W₂ ReLU(W₁ z + U x + b)`, `‖W₁‖ = ‖W₂‖ = 1`, on vectors, (batch, width).

    A contraction with factor `lipschitz` < 1 in z, unconstrained in x. Prefer it to the monotone form where
    nothing requires the map to be the gradient of a function.

    Args:
        width: of z.
        hidden: width of the hidden layer.
        inputs: width of an injected input x; 0: none is taken.
        lipschitz: in (0, 1).
    """

    def __init__(self, width: int, hidden: int, *, inputs: int = 0, lipschitz: float = 0.9) -> None:
        injection = nn.Linear(inputs, hidden, bias=False) if inputs else None
        super().__init__(
            nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False), injection, 1, lipschitz
        )


class ContractiveConv(_Contractive):
    """`P(z, x) = lipschitz · W₂ ReLU(W₁ z + U x + b)` on images: W₁ a k×k, W₂ and U 1×1 convolutions.

    Arguments as in `ContractiveDense`, with channels for widths; `kernel` is the odd size k.
    """

    def __init__(self, channels: int, hidden: int, *, inputs: int = 0, lipschitz: float = 0.9, kernel: int = 3) -> None:
        check_odd(kernel)
        inner = nn.Conv2d(channels, hidden, kernel, padding=kernel // 2, bias=False)
        outer = nn.Conv2d(hidden, channels, 1, bias=False)
        injection = nn.Conv2d(inputs, hidden, 1, bias=False) if inputs else None
        super().__init__(inner, outer, injection, kernel, lipschitz)


class _Monotone(nn.Module):
    """`P(z) = −Wᵀ σ(W z + b)`: −P is monotone, the gradient of a convex function."""

    def __init__(
        self, linear: nn.Linear | nn.Conv2d, taps: int, lipschitz: float | None, activation: nn.Module | None
    ) -> None:
        super().__init__()
        self.activation = activation or nn.ReLU()
        if not isinstance(self.activation, _MONOTONE_ACTIVATIONS):
            allowed = ", ".join(kind.__name__ for kind in _MONOTONE_ACTIVATIONS)
            raise ValueError(
                f"activation {type(activation).__name__} is not known to be nondecreasing and 1-Lipschitz, as a "
                f"monotone transform needs: use one of {allowed}"
            )
        self.linear, self.lipschitz, self.scale = linear, lipschitz, 1.0
        if lipschitz is not None:
            _check_lipschitz(lipschitz)
            self.scale = math.sqrt(lipschitz) / taps
            _normalise(linear)

    @property
    def solver(self) -> Solver:
        """A solver that finds `z = v + P(z)` whatever the norm of W."""
        return Monotone() if self.lipschitz is None else Anderson()

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        weight = self.scale * self.linear.weight
        return -self._transposed(self.activation(self._affine(z, weight)), weight)

    @abstractmethod
    def _affine(self, z: Tensor, weight: Tensor) -> Tensor:
        """`W z + b`."""

    @abstractmethod
    def _transposed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """`Wᵀ hidden`."""


class MonotoneDense(_Monotone):
    """`P(z) = −Wᵀ σ(W z + b)` on vectors, (batch, width).

    Its proximal step exists and is unique for every W, and its error is certified: `‖z − z*‖ ≤ ‖v + P(z) − z‖`. That
    step is the proximal operator of a convex function, hence nonexpansive: a network of `ppa` layers of this kind is
    1-Lipschitz and cannot approximate every function; `pgd` and `fista` keep a free smooth part beside it.

    Args:
        width: of z.
        hidden: rows of W.
        lipschitz: bound on `‖W‖²`, in (0, 1), under which plain solvers converge. None leaves W unconstrained: the
            proximal step is still well posed, and is solved with `Monotone()` by default.
        activation: σ, nondecreasing and 1-Lipschitz: ReLU, Tanh, Sigmoid or Softplus; None: ReLU.
    """

    def __init__(
        self, width: int, hidden: int, *, lipschitz: float | None = 0.9, activation: nn.Module | None = None
    ) -> None:
        super().__init__(nn.Linear(width, hidden), 1, lipschitz, activation)

    def _affine(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.linear(z, weight, self.linear.bias)

    def _transposed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.linear(hidden, weight.T)


class MonotoneConv(_Monotone):
    """`P(z) = −Wᵀ σ(W z + b)` on images, (batch, channels, height, width): W a k×k convolution, Wᵀ its transpose.

    Arguments as in `MonotoneDense`, with channels for widths; `kernel` is the odd size k.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        lipschitz: float | None = 0.9,
        activation: nn.Module | None = None,
        kernel: int = 3,
    ) -> None:
        check_odd(kernel)
        super().__init__(nn.Conv2d(channels, hidden, kernel, padding=kernel // 2), kernel, lipschitz, activation)
        self.padding = kernel // 2

    def _affine(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(z, weight, self.linear.bias, padding=self.padding)

    def _transposed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose2d(hidden, weight, padding=self.padding)


def _normalise(linear: nn.Module) -> nn.Module:
    """Divide the weight by its largest singular value, as estimated by power iteration."""
    spectral_norm(linear, n_power_iterations=4)
    with torch.no_grad():
        for _ in range(25):  # a fresh weight has many singular values near the largest
            _ = linear.weight
    return linear


def _check_lipschitz(lipschitz: float) -> None:
    if not isinstance(lipschitz, (int, float)) or not 0 < lipschitz < 1:
        raise ValueError(f"lipschitz={lipschitz!r} must lie in (0, 1)")
