"""The 23 classical systems of Burkardt's `test_nonlin`, the problem library of NonlinearSolve.jl.

Each is stated as its first source does. Where the collections differ from it, the source is followed: in Watson's
function, of which they keep two dimensions, and in the nodes of Chandrasekhar's equation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RootProblem:
    """`F(z) = 0`, (batch, dim) to (batch, dim), in double precision."""

    F: Callable[[Tensor], Tensor]
    start: tuple[float, ...]
    """The standard one."""
    source: str
    roots: tuple[tuple[float, ...], ...] = ()
    """Those in the literature, to the digits it gives; not always all there are."""

    @property
    def dim(self) -> int:
        return len(self.start)

    @property
    def z0(self) -> Tensor:
        """(1, dim)."""
        return torch.tensor([self.start], dtype=torch.float64)


MGH = "Moré, Garbow, Hillstrom, ACM Trans. Math. Softw. 7 (1981)"
BURKARDT = "Burkardt, test_nonlin"


def _indices(count: int) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64)


def _neighbours(z: Tensor) -> tuple[Tensor, Tensor]:
    """The entries before and after each, 0 beyond the ends."""
    padded = torch.nn.functional.pad(z, (1, 1))
    return padded[:, :-2], padded[:, 2:]


def _rosenbrock(z: Tensor) -> Tensor:
    return torch.cat((1 - z[:, :1], 10 * (z[:, 1:] - z[:, :-1] ** 2)), 1)


def _powell_singular(z: Tensor) -> Tensor:
    a, b, c, d = z.unbind(1)
    return torch.stack((a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2), 1)


def _powell_badly_scaled(z: Tensor) -> Tensor:
    return torch.stack((1e4 * z.prod(1) - 1, torch.exp(-z).sum(1) - 1.0001), 1)


def _wood(z: Tensor) -> Tensor:
    """Half the gradient of Wood's sum of squares, the first and third equations' signs as usual."""
    a, b, c, d = z.unbind(1)
    first, second = b - a**2, d - c**2
    return torch.stack(
        (
            -200 * a * first - (1 - a),
            200 * first + 20.2 * (b - 1) + 19.8 * (d - 1),
            -180 * c * second - (1 - c),
            180 * second + 20.2 * (d - 1) + 19.8 * (b - 1),
        ),
        1,
    )


def _helical_valley(z: Tensor) -> Tensor:
    a, b, c = z.unbind(1)
    turns = 0.25 + torch.atan2(-a, b) / (2 * math.pi)  # from −1/4 to 3/4, with the jump on the negative b axis
    return torch.stack((10 * (c - 10 * turns), 10 * (torch.hypot(a, b) - 1), c), 1)


def _watson(z: Tensor) -> Tensor:
    """Half the gradient of the squares' sum: how far the polynomial of these coefficients is from `p′ = p² + 1`."""
    power = torch.arange(z.shape[1], dtype=z.dtype, device=z.device)
    nodes = _indices(29).to(z)[:, None] / 29
    values, slopes = nodes**power, power * nodes ** (power - 1).clamp(min=0)
    value = z @ values.T
    defect = z @ slopes.T - value**2 - 1
    first, second = z[:, 0], z[:, 1]
    last = second - first**2 - 1
    ends = torch.stack((first - 2 * first * last, last), 1)
    return defect @ slopes - 2 * (defect * value) @ values + torch.nn.functional.pad(ends, (0, z.shape[1] - 2))


def _chebyquad(z: Tensor) -> Tensor:
    """The means of the Chebyshev polynomials over the nodes less their integrals' halves, nodes in [−1, 1]."""
    polynomials = [torch.ones_like(z), z]
    for _ in range(z.shape[1] - 1):
        polynomials.append(2 * z * polynomials[-1] - polynomials[-2])
    degree = _indices(z.shape[1]).to(z)
    integral = torch.where(degree % 2 == 0, 1 / (1 - degree**2), 0)
    return torch.stack(polynomials[1:], 1).mean(2) - integral


def _brown_almost_linear(z: Tensor) -> Tensor:
    linear = z[:, :-1] + z.sum(1, keepdim=True) - (z.shape[1] + 1)
    return torch.cat((linear, z.prod(1, keepdim=True) - 1), 1)


def _discrete_boundary_value(z: Tensor) -> Tensor:
    """`u″ = (u + t + 1)³ / 2`, u = 0 at both ends of (0, 1), by central differences."""
    before, after = _neighbours(z)
    step = 1 / (z.shape[1] + 1)
    return 2 * z - before - after + step**2 / 2 * (z + step * _indices(z.shape[1]).to(z) + 1) ** 3


def _discrete_integral(z: Tensor) -> Tensor:
    """The same equation by Green's function and the rectangle rule."""
    step = 1 / (z.shape[1] + 1)
    t = step * _indices(z.shape[1]).to(z)
    kernel = torch.minimum(t[:, None], t) * (1 - torch.maximum(t[:, None], t))
    return z + step / 2 * (z + t + 1) ** 3 @ kernel.T


def _trigonometric(z: Tensor) -> Tensor:
    cosine = torch.cos(z)
    return (1 - cosine).sum(1, keepdim=True) + _indices(z.shape[1]).to(z) * (1 - cosine) - torch.sin(z)


def _variably_dimensioned(z: Tensor) -> Tensor:
    """Half the gradient of the squares' sum."""
    index = _indices(z.shape[1]).to(z)
    weighted = (index * (z - 1)).sum(1, keepdim=True)
    return z - 1 + index * weighted * (1 + 2 * weighted**2)


def _broyden_tridiagonal(z: Tensor) -> Tensor:
    before, after = _neighbours(z)
    return (3 - 2 * z) * z - before - 2 * after + 1


def _broyden_banded(z: Tensor) -> Tensor:
    """Each equation knows the five unknowns before its own, and the one after."""
    ones = torch.ones(z.shape[1], z.shape[1], dtype=z.dtype, device=z.device)
    band = ones.triu(-5).tril(1) - torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return z * (2 + 5 * z**2) + 1 - (z * (1 + z)) @ band.T


def _hammarling(z: Tensor) -> Tensor:
    """`X² = A` for A of 10⁻⁴ on the diagonal and one 1 beside it."""
    size = math.isqrt(z.shape[1])
    root = z.view(-1, size, size)
    square = 1e-4 * torch.eye(size, dtype=z.dtype, device=z.device)
    square[0, 1] = 1
    return (root @ root - square).flatten(1)


def _dennis_schnabel(z: Tensor) -> Tensor:
    return torch.stack((z.sum(1) - 3, (z**2).sum(1) - 9), 1)


def _bell_over(x: Tensor) -> Tensor:
    """`(1 − exp(−x²)) / x`, 0 at 0."""
    return torch.where(x == 0, x, -torch.expm1(-(x**2)) / torch.where(x == 0, 1, x))


def _sample_18(z: Tensor) -> Tensor:
    a, b = z.unbind(1)
    return torch.stack((b**2 * _bell_over(a), a * _bell_over(b)), 1)


def _sample_19(z: Tensor) -> Tensor:
    return z * (z**2).sum(1, keepdim=True)


def _double_root(z: Tensor) -> Tensor:
    return z * (z - 5) ** 2


def _freudenstein_roth(z: Tensor) -> Tensor:
    a, b = z.unbind(1)
    return torch.stack((a - 13 + ((5 - b) * b - 2) * b, a - 29 + ((b + 1) * b - 14) * b), 1)


def _boggs(z: Tensor) -> Tensor:
    a, b = z.unbind(1)
    return torch.stack((a**2 - b + 1, a - torch.cos(math.pi / 2 * b)), 1)


def _chandrasekhar(z: Tensor) -> Tensor:
    """The H-equation for an albedo of 0.9, by the midpoint rule."""
    nodes = (_indices(z.shape[1]).to(z) - 0.5) / z.shape[1]
    kernel = 0.9 / (2 * z.shape[1]) * nodes[:, None] / (nodes[:, None] + nodes)
    return z - 1 / (1 - z @ kernel.T)


_TENTHS = tuple(k / 10 for k in range(1, 11))
_PARABOLA = tuple(k * (k - 11) / 121 for k in range(1, 11))
_ONES = (1.0,) * 10

PROBLEMS: dict[str, RootProblem] = {
    "generalized Rosenbrock": RootProblem(
        _rosenbrock, (-1.2, *_ONES[1:]), "Rosenbrock, Computer J. 3 (1960); " + BURKARDT, (_ONES,)
    ),
    "Powell singular": RootProblem(
        _powell_singular, (3.0, -1.0, 0.0, 1.0), "Powell, Computer J. 5 (1962); " + MGH, ((0.0,) * 4,)
    ),
    "Powell badly scaled": RootProblem(
        _powell_badly_scaled, (0.0, 1.0), "Powell (1970); " + MGH, ((1.098159e-5, 9.106146),)
    ),
    "Wood": RootProblem(_wood, (-3.0, -1.0, -3.0, -1.0), "Colville (1968); " + MGH, ((1.0,) * 4,)),
    "helical valley": RootProblem(
        _helical_valley, (-1.0, 0.0, 0.0), "Fletcher, Powell, Computer J. 6 (1963); " + MGH, ((1.0, 0.0, 0.0),)
    ),
    "Watson": RootProblem(
        _watson,
        (0.0,) * 6,
        "Kowalik, Osborne (1968); " + MGH,
        ((-0.015725, 1.012435, -0.232992, 1.260430, -1.513729, 0.992996),),
    ),
    "Chebyquad": RootProblem(
        _chebyquad, (0.0, 2 / 3), "Fletcher, Computer J. 8 (1965); " + MGH, ((-(3**-0.5), 3**-0.5),)
    ),
    "Brown almost linear": RootProblem(
        _brown_almost_linear,
        (0.5,) * 10,
        "Brown, SIAM J. Numer. Anal. 6 (1969); " + MGH,
        (_ONES, (0.97943043,) * 9 + (1.2056957,)),
    ),
    "discrete boundary value": RootProblem(
        _discrete_boundary_value, _PARABOLA, "Moré, Cosnard, ACM Trans. Math. Softw. 5 (1979); " + MGH
    ),
    "discrete integral equation": RootProblem(
        _discrete_integral, _PARABOLA, "Moré, Cosnard, ACM Trans. Math. Softw. 5 (1979); " + MGH
    ),
    "trigonometric": RootProblem(_trigonometric, (0.1,) * 10, "Spedicato (1975); " + MGH, ((0.0,) * 10,)),
    "variably dimensioned": RootProblem(_variably_dimensioned, tuple(1 - tenth for tenth in _TENTHS), MGH, (_ONES,)),
    "Broyden tridiagonal": RootProblem(_broyden_tridiagonal, (-1.0,) * 10, "Broyden, Math. Comp. 19 (1965); " + MGH),
    "Broyden banded": RootProblem(_broyden_banded, (-1.0,) * 10, "Broyden, Math. Comp. 25 (1971); " + MGH),
    "Hammarling 2 × 2": RootProblem(
        _hammarling, (1.0, 0.0, 0.0, 1.0), "Hammarling; " + BURKARDT, ((0.01, 50.0, 0.0, 0.01),)
    ),
    "Hammarling 3 × 3": RootProblem(
        _hammarling,
        (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        "Hammarling; " + BURKARDT,
        ((0.01, 50.0, 0.0, 0.0, 0.01, 0.0, 0.0, 0.0, 0.01),),
    ),
    "Dennis and Schnabel": RootProblem(
        _dennis_schnabel,
        (1.0, 5.0),
        "Dennis, Schnabel, Numerical Methods for Unconstrained Optimization and Nonlinear Equations (1983)",
        ((0.0, 3.0), (3.0, 0.0)),
    ),
    "sample 18": RootProblem(_sample_18, (2.0, 2.0), BURKARDT, ((0.0, 0.0),)),
    "sample 19": RootProblem(_sample_19, (3.0, 3.0), BURKARDT, ((0.0, 0.0),)),
    "z (z − 5)²": RootProblem(_double_root, (1.0,), BURKARDT, ((0.0,), (5.0,))),
    "Freudenstein and Roth": RootProblem(
        _freudenstein_roth, (0.5, -2.0), "Freudenstein, Roth, J. ACM 10 (1963); " + MGH, ((5.0, 4.0),)
    ),
    "Boggs": RootProblem(
        _boggs, (1.0, 0.0), "Boggs, SIAM J. Numer. Anal. 8 (1971)", ((0.0, 1.0), (-1.0, 2.0), (-(0.5**0.5), 1.5))
    ),
    "Chandrasekhar": RootProblem(
        _chandrasekhar, _ONES, "Chandrasekhar, Radiative Transfer (1950); Kelley, Iterative Methods, SIAM (1995), ch. 5"
    ),
}
