"""Classical fixed-point problems, each with its source: small, in double precision, the same at every build."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import Affine, Problem, TanhLayer, normal


def _uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def _chandrasekhar(c: float) -> Problem:
    """The H-equation of radiative transfer by the midpoint rule; singular at c = 1."""
    count = 50
    mu = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    kernel = c / (2 * count) * mu[:, None] / (mu[:, None] + mu)
    reference = "Chandrasekhar, Radiative Transfer (1950); Kelley, Iterative Methods, SIAM (1995), ch. 5"
    return Problem(lambda z: 1 / (1 - z @ kernel.T), 1 + _zeros(1, count), reference)


def _bratu() -> Problem:
    """`−u″ = λ eᵘ` on (0, 1), u = 0 at both ends, by central differences: `u ↦ λ A⁻¹ eᵘ`; a fold lies at λ = 3.51."""
    count = 40
    once = torch.ones(count - 1, dtype=torch.float64)
    laplacian = 2 * torch.eye(count, dtype=torch.float64) - torch.diag(once, 1) - torch.diag(once, -1)
    inverse = torch.linalg.inv(laplacian * (count + 1) ** 2)
    strength = torch.tensor([[1.0], [2.0], [3.0], [3.4]], dtype=torch.float64)
    reference = "Bratu, Bulletin de la S. M. F. 42 (1914)"
    return Problem(lambda z: strength * torch.exp(z) @ inverse.T, _zeros(4, count), reference)


def _kepler() -> Problem:
    """`E = M + e sin E`, eccentricities from 0.1 to 0.95."""
    anomaly, eccentricity = 6 * _uniform(1, 8, 1), torch.linspace(0.1, 0.95, 8, dtype=torch.float64)[:, None]
    return Problem(lambda z: anomaly + eccentricity * torch.sin(z), _zeros(8, 1), "Kepler, Astronomia nova (1609)")


def _pagerank(damping: float) -> Problem:
    """Personalised ranks on a random graph of 100 pages; a page without links links to all."""
    count = 100
    links = (_uniform(2, count, count) < 0.05).double()
    links = torch.where(links.sum(0) > 0, links, 1.0)
    preference = F.normalize(_uniform(3, 4, count), p=1, dim=1)
    f = Affine(damping * links / links.sum(0), (1 - damping) * preference)
    reference = "Page, Brin, Motwani, Winograd, The PageRank citation ranking (1999)"
    return Problem(f, torch.full((4, count), 1 / count, dtype=torch.float64), reference)


def _gaussian_mixture() -> Problem:
    """EM for the weight (its logit) and the means of two unit normals that overlap, from two starts."""
    sample = torch.cat((normal(4, 100) - 1, normal(5, 100) + 1))

    def f(z: Tensor) -> Tensor:
        logit, first, second = z[:, :1], z[:, 1:2], z[:, 2:]
        share = torch.sigmoid(logit + ((sample - second) ** 2 - (sample - first) ** 2) / 2)
        weight = share.mean(1, keepdim=True)
        means = (share * sample).mean(1, keepdim=True) / weight, ((1 - share) * sample).mean(1, keepdim=True)
        return torch.cat((torch.logit(weight), means[0], means[1] / (1 - weight)), 1)

    start = torch.tensor([[0.1, -0.5, 0.6], [0.0, -2.0, 3.0]], dtype=torch.float64)
    return Problem(f, start, "Dempster, Laird, Rubin, J. Roy. Stat. Soc. B 39 (1977); Walker, Ni, SINUM 49 (2011)")


def _lasso() -> Problem:
    """ISTA, 40 equations for 60 unknowns of which 5 matter, two weights of the penalty."""
    matrix = normal(6, 40, 60)
    truth = torch.where(torch.arange(60) < 5, 3.0, 0.0).double()
    target = matrix @ truth + 0.01 * normal(7, 40)
    rate = torch.linalg.matrix_norm(matrix, 2) ** -2
    threshold = rate * torch.tensor([[2.0], [10.0]], dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        forward = z - rate * (z @ matrix.T - target) @ matrix
        return torch.relu(forward - threshold) - torch.relu(-forward - threshold)

    return Problem(f, _zeros(2, 60), "Daubechies, Defrise, De Mol, Comm. Pure Appl. Math. 57 (2004)")


def _ridge() -> Problem:
    """Ridge regression by gradient descent, at half the longest safe step."""
    matrix, targets = normal(8, 100, 20), normal(9, 2, 100)
    rate = torch.linalg.matrix_norm(matrix, 2) ** -2
    step = 0.999 * torch.eye(20, dtype=torch.float64) - rate * matrix.T @ matrix
    return Problem(Affine(step, rate * targets @ matrix), _zeros(2, 20), "Hoerl, Kennard, Technometrics 12 (1970)")


def _tanh_layer(gain: float, reference: str) -> Problem:
    """A dense cell with Gaussian weights; beyond gain 1 the cell without input is chaotic."""
    return Problem(TanhLayer(gain / 8 * normal(10, 64, 64), normal(11, 8, 64)), _zeros(8, 64), reference)


def _convolutional() -> Problem:
    """A residual cell: two 3×3 convolutions, ReLU, group normalisation, the input injected."""
    inner, outer = 0.15 * normal(12, 6, 4, 3, 3), 0.15 * normal(13, 4, 6, 3, 3)
    inputs = normal(14, 4, 4, 8, 8)

    def f(z: Tensor) -> Tensor:
        branch = F.conv2d(F.relu(F.conv2d(z, inner, padding=1)), outer, padding=1)
        return F.group_norm(F.relu(inputs + branch + 0.3 * z), 2)

    return Problem(f, _zeros(4, 4, 8, 8), "Bai, Koltun, Kolter, Multiscale deep equilibrium models, NeurIPS 2020")


def _symmetric(least: float, largest: float) -> Problem:
    """Richardson's iteration for a symmetric system of 64 unknowns with equidistant eigenvalues."""
    basis = torch.linalg.qr(normal(15, 64, 64))[0]
    matrix = basis * torch.linspace(least, largest, 64, dtype=torch.float64) @ basis.T
    reference = "Richardson, Phil. Trans. Roy. Soc. A 210 (1911)"
    return Problem(Affine(matrix, normal(11, 8, 64)), _zeros(8, 64), reference)


def _gaussian() -> Problem:
    """An affine map whose eigenvalues fill the disc of radius 0.95, a matrix far from normal."""
    matrix = normal(16, 64, 64)
    matrix = 0.95 * matrix / torch.linalg.eigvals(matrix).abs().max()
    reference = "Ginibre, J. Math. Phys. 6 (1965)"
    return Problem(Affine(matrix, normal(11, 8, 64)), _zeros(8, 64), reference)


def _monotone() -> Problem:
    """`z ↦ v − Wᵀ relu(W z)` with ‖W‖² = 0.9."""
    weight = normal(17, 16, 32)
    weight = 0.9**0.5 * weight / torch.linalg.matrix_norm(weight, 2)
    inputs = normal(18, 8, 32)
    reference = "Winston, Kolter, Monotone operator equilibrium networks, NeurIPS 2020"
    return Problem(lambda z: inputs - torch.relu(z @ weight.T) @ weight, _zeros(8, 32), reference)


def _sinkhorn() -> Problem:
    """Scaling of a 20×20 kernel to two marginals, on the logarithm of one scaling, whose mean is free and held at 0."""
    kernel = torch.exp(-_uniform(19, 20, 20) / 0.1)
    source = F.normalize(0.5 + _uniform(20, 2, 20), p=1, dim=1)

    def f(z: Tensor) -> Tensor:
        rows = source / (torch.exp(z) @ kernel.T)
        scaling = -torch.log(20 * rows @ kernel)
        return scaling - scaling.mean(1, keepdim=True)

    return Problem(f, _zeros(2, 20), "Sinkhorn, Ann. Math. Stat. 35 (1964); Cuturi, NeurIPS 2013")


def build() -> dict[str, Problem]:
    """Build the table of problems."""
    return {
        "Chandrasekhar 0.9": _chandrasekhar(0.9),
        "Chandrasekhar 0.9999": _chandrasekhar(0.9999),
        "Bratu": _bratu(),
        "Kepler": _kepler(),
        "PageRank 0.85": _pagerank(0.85),
        "PageRank 0.99": _pagerank(0.99),
        "Gaussian mixture": _gaussian_mixture(),
        "Lasso": _lasso(),
        "ridge": _ridge(),
        "tanh 0.9": _tanh_layer(0.9, "Bai, Kolter, Koltun, Deep equilibrium models, NeurIPS 2019"),
        "tanh 2": _tanh_layer(2.0, "Sompolinsky, Crisanti, Sommers, Phys. Rev. Lett. 61 (1988)"),
        "convolutional": _convolutional(),
        "symmetric ±0.95": _symmetric(-0.95, 0.95),
        "symmetric 0–0.995": _symmetric(0.0, 0.995),
        "Gaussian 0.95": _gaussian(),
        "monotone": _monotone(),
        "Sinkhorn": _sinkhorn(),
    }


PROBLEMS = build()
