"""Cells like those of torchdeq's zoo: in torchdeq, with our solvers there, and as a layer of ours.

Sources: Bai, Koltun, Kolter, "Multiscale Deep Equilibrium Models", 2020; Bai, Kolter, Koltun, "Deep Equilibrium
Models", 2019; Huang, Bai, Kolter, "(Implicit)²", 2021; Gu et al., "Implicit Graph Neural Networks", 2020; Bai, Geng,
Savani, Kolter, "Deep Equilibrium Optical Flow Estimation", 2022.
"""

import pytest
import torch
import torch.nn.functional as F
import torchdeq
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torchdeq.norm import apply_norm, reset_norm

from implicit import Equilibrium, ImplicitGradient, torchdeq_bridge


class Multiscale(nn.Module):
    """MDEQ: a residual block a resolution, then each gets the sum of all, strided down or interpolated up."""

    def __init__(self, normed):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1)])
            for _ in range(2)
        )
        self.down, self.up = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1)
        self.after = nn.ModuleList(nn.GroupNorm(2, 4) for _ in range(2))
        convolutions = [each for each in self.modules() if isinstance(each, nn.Conv2d)]
        for each in convolutions if normed == "parametrized" else ():
            weight_norm(each)
        if normed == "torchdeq":
            apply_norm(self, "weight_norm")

    def forward(self, z, x):
        fine, coarse = (
            0.3 * z + second(F.relu(norm(first(z)))) + injected
            for (first, norm, second), z, injected in zip(self.blocks, z, (x, torch.zeros_like(z[1])), strict=True)
        )
        fused = fine + F.interpolate(self.up(coarse), scale_factor=2), coarse + self.down(fine)
        return tuple(0.1 * norm(F.softplus(each)) for norm, each in zip(self.after, fused, strict=True))


def multiscale(normed):
    x = torch.randn(2, 4, 8, 8)
    cell = Multiscale(normed)
    if normed == "torchdeq":
        reset_norm(cell)
    return cell, (x,), (torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 4, 4)), [x, *cell.parameters()]


class Attention(nn.Module):
    """DEQ-Transformer: causal attention with relative positions on (batch, channels, length), queries, keys and values
    injected, layer norm on a transposed view: its image is not contiguous.
    """

    def __init__(self, width=8, length=6):
        super().__init__()
        self.qkv, self.out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)
        self.relative = nn.Parameter(torch.randn(length, width // 2))
        self.bias = nn.Parameter(torch.randn(2, 1, width // 2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, z, x):
        length = z.shape[-1]
        q, k, v = (self.qkv(z) + x).unflatten(1, (3, 2, -1)).mT.unbind(1)  # (batch, heads, length, channels)
        place = torch.arange(length)
        distance = (place[:, None] - place).clamp(min=0)
        scores = q @ k.mT + (q + self.bias).matmul(self.relative.T).gather(-1, distance.expand(*q.shape[:2], -1, -1))
        scores = scores.masked_fill(place > place[:, None], -torch.inf) / q.shape[-1] ** 0.5
        heard = self.out((scores.softmax(-1) @ v).mT.flatten(1, 2))
        inner = self.norms[0]((heard + z).mT)
        return 0.3 * self.norms[1](inner + self.feed(inner)).mT


def transformer():
    cell, x = Attention(), torch.randn(3, 24, 6)
    z = torch.zeros(3, 8, 6)
    assert not cell(z, x).is_contiguous()
    return cell, (x,), z, [x, *cell.parameters()]


class Filters(nn.Module):
    """An implicit neural representation: each coordinate a row, through sines or Gabor filters."""

    def __init__(self, kind, width=16):
        super().__init__()
        self.kind, self.inner, self.wave = kind, nn.Linear(width, width), nn.Linear(2, width)
        self.centre, self.width = nn.Parameter(torch.randn(width, 2)), nn.Parameter(torch.rand(width))
        nn.init.uniform_(self.inner.weight, -0.2, 0.2)

    def forward(self, z, x):
        if self.kind == "sine":
            return torch.sin(self.inner(z) + 10 * self.wave(x))
        squares = (x[:, None] - self.centre).square().sum(-1)
        return self.inner(z) * torch.exp(-self.width * squares) * torch.sin(10 * self.wave(x)) + 0.1


def representation(kind):
    cell, x = Filters(kind), torch.rand(12, 2) * 2 - 1
    return cell, (x,), torch.zeros(12, 16), [x, *cell.parameters()]


class Graph(nn.Module):
    """IGNN: φ(W z A + B) with the nodes in the last dim, the graph one row."""

    def __init__(self, adjacency, width=5):
        super().__init__()
        self.weight, self.inject = nn.Parameter(0.2 * torch.randn(width, width)), nn.Linear(3, width)
        self.adjacency = adjacency

    def forward(self, z, x):
        return F.relu(self.weight @ z @ self.adjacency + self.inject(x).mT)


def graph():
    links = (torch.rand(9, 9) < 0.4).float()
    links = ((links + links.T + torch.eye(9)) > 0).double()
    scale = links.sum(0).rsqrt()
    x = torch.randn(1, 9, 3)
    cell = Graph(scale[:, None] * links * scale)
    return cell, (x,), torch.zeros(1, 5, 9), [x, *cell.parameters()]


class Update(nn.Module):
    """DEQ-Flow: a ConvGRU on hidden state and flow, which looks correlations up where the flow points.

    The correlations belong to the pair of images, and are held by the cell: (batch · height · width, 1, height, width).
    """

    def __init__(self, images, width=4):
        super().__init__()
        self.encode = nn.Conv2d(3, width, 3, padding=1)
        self.motion = nn.Conv2d(9 + 2, width, 3, padding=1)
        self.gates, self.candidate = (nn.Conv2d(3 * width, n * width, 3, padding=1) for n in (2, 1))
        self.head = nn.Conv2d(width, 2, 3, padding=1)
        one, other = map(self.encode, images)
        self.volume = torch.einsum("bchw,bcij->bhwij", one, other).flatten(0, 2)[:, None] / 2

    def forward(self, z, context):
        hidden, flow = z
        batch, _, height, width = flow.shape
        size = torch.tensor([width, height]) - 1
        here = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(-1)  # (x, y) of each pixel
        around = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
        at = (here + flow.flatten(2).mT)[:, :, None] + around  # (batch, pixels, 9, 2)
        found = F.grid_sample(self.volume, (2 * at / size - 1).flatten(0, 1)[:, None], align_corners=True)
        found = found.view(batch, height, width, 9).permute(0, 3, 1, 2)
        known = torch.cat([context, F.relu(self.motion(torch.cat([found, flow], 1)))], 1)
        update, reset = torch.sigmoid(self.gates(torch.cat([hidden, known], 1))).chunk(2, 1)
        hidden = (1 - update) * hidden + update * torch.tanh(self.candidate(torch.cat([reset * hidden, known], 1)))
        return hidden, 0.5 * flow + self.head(hidden)


def flow():
    images, context = torch.randn(2, 2, 3, 5, 6).requires_grad_(), torch.randn(2, 4, 5, 6)
    cell = Update(images)
    return cell, (context,), (torch.zeros(2, 4, 5, 6), torch.zeros(2, 2, 5, 6)), [images, context, *cell.parameters()]


ZOO = {
    "MDEQ": lambda: multiscale("parametrized"),
    "MDEQ, torchdeq's weight norm": lambda: multiscale("torchdeq"),
    "DEQ-Transformer": transformer,
    "INR, sines": lambda: representation("sine"),
    "INR, Gabor": lambda: representation("gabor"),
    "IGNN": graph,
    "DEQ-Flow": flow,
}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ZOO)
def test_values_and_gradients_are_the_same_everywhere(name):
    torchdeq_bridge.register()
    cell, inputs, start, wanted = ZOO[name]()
    for each in inputs:
        each.requires_grad_()
    several = isinstance(start, tuple)

    def by_torchdeq(forward, backward):
        deq = torchdeq.get_deq(
            f_solver=forward, b_solver=backward, ift=True, f_max_iter=500, b_max_iter=500, f_tol=1e-11, b_tol=1e-11
        )
        f = (lambda *z: cell(z, *inputs)) if several else (lambda z: cell(z, *inputs))
        return deq(f, start)[0][-1]

    tight = {"rtol": 1e-11, "max_steps": 500}
    layer = Equilibrium(cell, initial=lambda *_: start, compact=False, gradient=ImplicitGradient(**tight), **tight)
    found = []
    for z in (
        by_torchdeq("fixed_point_iter", "fixed_point_iter"),
        by_torchdeq("implicit_anderson", "implicit_gmres"),
        by_torchdeq("implicit_broyden", "implicit_anderson"),
        layer(*inputs),
    ):
        parts = list(z) if several else [z]
        loss = sum((part.sin() * (k + 1)).sum() for k, part in enumerate(parts))
        gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
        found.append([*parts, *gradients])
    for others in found[1:]:
        for one, other in zip(others, found[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
