"""Transforms P whose proximal step is well posed: `z = v + P(z)` has exactly one solution for every v.

Either P contracts, or −P is monotone. Norms are bounded through `torch.nn.utils.parametrizations.spectral_norm`. For a
k×k convolution that bounds the norm of the kernel as a matrix, and k times it bounds the convolution's own norm
(Singla, Feizi, "Fantastic Four", ICLR 2021), so the kernel is divided by k: a certificate, at the price of some range.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .transforms import inject

_MONOTONE_ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus)


class _Contractive(nn.Module):
    """`P(z, x) = lipschitz · W₂ σ(W₁ z + U x + b)` with `‖W₁‖, ‖W₂‖ ≤ 1`."""

    def __init__(
        self, inner: nn.Module, outer: nn.Module, injection: nn.Module | None, taps: int, lipschitz: float
    ) -> None:
        super().__init__()
        _check_lipschitz(lipschitz)
        self.inner, self.outer, self.injection = spectral_norm(inner), spectral_norm(outer), injection
        self.bias = nn.Parameter(torch.zeros(next(inner.parameters()).shape[0]))
        self.scale, self.lipschitz = 1 / taps, lipschitz

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        bias = self.bias.view(-1, *[1] * (z.ndim - 2))
        hidden = inject(self.scale * self.inner(z) + bias, self.injection, inputs)
        output: Tensor = self.lipschitz * self.outer(hidden.relu())
        return output


class ContractiveDense(_Contractive):
    """`P(z, x) = lipschitz · W₂ ReLU(W₁ z + U x + b)`, `‖W₁‖ = ‖W₂‖ = 1`, on vectors, (batch, width).

    A contraction with factor `lipschitz` < 1 in z, free in x. Prefer it to the monotone form where the map need not be
    a gradient.

    Args:
        width: of z.
        hidden: of the layer between.
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
        inner = nn.Conv2d(channels, hidden, kernel, padding=kernel // 2, bias=False)
        outer = nn.Conv2d(hidden, channels, 1, bias=False)
        injection = nn.Conv2d(inputs, hidden, 1, bias=False) if inputs else None
        super().__init__(inner, outer, injection, kernel, lipschitz)


class _Monotone(nn.Module):
    """`P(z) = −Wᵀ σ(W z + b)`: −P is monotone, the gradient of a convex function."""

    def __init__(self, weight: Tensor, taps: int, lipschitz: float | None, activation: nn.Module | None) -> None:
        super().__init__()
        self.activation = activation or nn.ReLU()
        if not isinstance(self.activation, _MONOTONE_ACTIVATIONS):
            allowed = ", ".join(kind.__name__ for kind in _MONOTONE_ACTIVATIONS)
            raise ValueError(
                f"activation {type(activation).__name__} is not known to be nondecreasing and 1-Lipschitz, as a "
                f"monotone transform needs: use one of {allowed}"
            )
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))
        self.lipschitz, self.scale = lipschitz, 1.0
        if lipschitz is not None:
            _check_lipschitz(lipschitz)
            self.scale = math.sqrt(lipschitz) / taps
            spectral_norm(self)

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        weight = self.scale * self.weight
        return -self._transposed(self.activation(self._forward(z, weight)), weight)

    def _forward(self, z: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _transposed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError


class MonotoneDense(_Monotone):
    """`P(z) = −Wᵀ σ(W z + b)` on vectors, (batch, width).

    Its proximal step exists and is unique for every W, and its error is certified: `‖z − z*‖ ≤ ‖v + P(z) − z‖`. That
    step is the proximal operator of a convex function, hence nonexpansive: a network of `ppa` layers of this kind is
    1-Lipschitz and cannot approximate every function; `pgd` and `fista` keep a free smooth part beside it.

    Args:
        width: of z.
        hidden: rows of W.
        lipschitz: bound on `‖W‖²`, in (0, 1), under which plain solvers converge; None leaves W free: still well
            posed, but for a large W the solver must fit (`Picard(damping=2 / (2 + ‖W‖²))`).
        activation: σ, nondecreasing and 1-Lipschitz: ReLU, Tanh, Sigmoid or Softplus; None: ReLU.
    """

    def __init__(
        self, width: int, hidden: int, *, lipschitz: float | None = 0.9, activation: nn.Module | None = None
    ) -> None:
        super().__init__(nn.Linear(width, hidden).weight.detach(), 1, lipschitz, activation)

    def _forward(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.linear(z, weight, self.bias)

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
        super().__init__(nn.Conv2d(channels, hidden, kernel).weight.detach(), kernel, lipschitz, activation)
        self.padding = kernel // 2

    def _forward(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(z, weight, self.bias, padding=self.padding)

    def _transposed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose2d(hidden, weight, padding=self.padding)


def _check_lipschitz(lipschitz: float) -> None:
    if not 0 < lipschitz < 1:
        raise ValueError(f"lipschitz={lipschitz!r} must lie in (0, 1)")
