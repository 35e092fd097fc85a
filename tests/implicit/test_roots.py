"""Gradients of roots of functions in any unit, by every policy, and what is said of them."""

import re
import warnings

import pytest
import torch
from torch import nn

from implicit import (
    ConvergenceWarning,
    ImplicitGradient,
    PhantomGradient,
    ReversibleGradient,
    ShineGradient,
    fixed_point,
    root,
)
from implicit.diagnostics import diagnose
from implicit.equilibrium import Equilibrium
from solvers import GMRES, Anderson, Captured, Eager, Picard, Reversible, Status
from solvers import root as solve_root

ROWS, WIDTH = 3, 24
DOUBLE = {"dtype": torch.float64}


def mixed(side, decades):
    """Factors of F and units of z, entry by entry."""
    some = torch.logspace(-decades, decades, WIDTH, **DOUBLE)[torch.randperm(WIDTH)]
    one = torch.ones_like(some)
    return {"equations": (some, one), "states": (one, some), "both": (1 / some, some)}[side]


@pytest.mark.parametrize("side", ["equations", "states", "both"])
@pytest.mark.parametrize("decades", [1, 2, 3])
@pytest.mark.parametrize("way", ["once", "twice", "transformed"])
def test_gradients_where_entries_have_units_of_their_own(side, decades, way):
    torch.manual_seed(0)
    factor, unit = mixed(side, decades)
    matrix = torch.eye(WIDTH, **DOUBLE) + 0.3 * torch.randn(WIDTH, WIDTH, **DOUBLE) / WIDTH**0.5
    x = torch.randn(ROWS, WIDTH, **DOUBLE, requires_grad=True)

    def solved(x):
        def residual(z, x):
            return factor * ((z / unit) @ matrix.T + 0.3 * torch.tanh(z / unit) - x)

        return root(residual, torch.zeros(ROWS, WIDTH, **DOUBLE), (x,), rtol=1e-12, atol=0.0)

    weight = (1 / unit).expand(ROWS, WIDTH)
    if way == "transformed":
        z, pull = torch.func.vjp(solved, x.detach())
        (found,) = pull(weight)
    else:
        z = solved(x)
        (found,) = torch.autograd.grad(z, x, weight, create_graph=way == "twice")
    slopes = 1 - torch.tanh(z.detach() / unit) ** 2
    jacobians = torch.stack([matrix + 0.3 * torch.diag(row) for row in slopes])
    expected = torch.linalg.solve(jacobians.mT, torch.ones(ROWS, WIDTH, 1, **DOUBLE))[..., 0]
    assert torch.linalg.vector_norm(found - expected) <= 2e-3 * torch.linalg.vector_norm(expected)


def test_small_gradients_beside_large_ones_have_their_digits():
    torch.manual_seed(0)
    factor = torch.tensor([1e5] * 12 + [1.0] * 12, **DOUBLE)
    matrix = torch.eye(WIDTH, **DOUBLE) + 0.3 * torch.randn(WIDTH, WIDTH, **DOUBLE) / WIDTH**0.5
    x = (torch.randn(ROWS, WIDTH, **DOUBLE) * factor).requires_grad_()
    z = root(lambda z, x: factor * (z @ matrix.T + 0.1 * z.sin()) - x, torch.zeros_like(x), (x,), rtol=1e-10)
    weights = torch.tensor([[1.0], [1e-6], [1e4]], **DOUBLE)  # of rows in a loss: each has its own tolerance
    (found,) = torch.autograd.grad((z * weights).sum(), x)
    jacobians = torch.stack([factor[:, None] * (matrix + 0.1 * torch.diag(row.cos())) for row in z.detach()])
    expected = torch.linalg.solve(jacobians.mT, weights.expand_as(z)[..., None])[..., 0]
    for part in (slice(0, 12), slice(12, WIDTH)):
        norms = torch.linalg.vector_norm((found - expected)[:, part], dim=1)
        assert (norms <= 1e-3 * torch.linalg.vector_norm(expected[:, part], dim=1)).all()


@pytest.mark.filterwarnings("ignore::implicit.logs.ConvergenceWarning")
@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("steps", [8, 30])
def test_reversible_gradients_of_roots_are_those_of_the_steps(scale, steps):
    torch.manual_seed(0)
    matrix = 0.4 * torch.randn(5, 5, **DOUBLE) / 5**0.5
    x = torch.randn(ROWS, 5, **DOUBLE, requires_grad=True)
    start = torch.zeros(ROWS, 5, **DOUBLE, requires_grad=True)

    def residual(z, x):
        return scale * (z - torch.tanh(z @ matrix + x))

    z = root(
        residual, start, (x,), solver=Reversible(), gradient=ReversibleGradient(), min_steps=steps, max_steps=steps,
        rtol=1e-14,
    )  # fmt: skip
    found = torch.autograd.grad(z.sum(), [x, start])
    now = before = start
    for _ in range(steps - 1):
        now, before = 0.5 * before + 0.5 * (now - residual(now, x)), now
    torch.testing.assert_close(z, now)
    torch.testing.assert_close(found, torch.autograd.grad(now.sum(), [x, start]), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("residual", "radius"),
    [  # warnings are issued once for a function
        (lambda z, x: 3.0 * (z - 0.3 * torch.tanh(z) - x), 1.1),
        (lambda z, x: 1e3 * (z - 0.3 * torch.tanh(z) - x), 699.0),
    ],
)
def test_the_radius_in_a_warning_is_that_of_the_solvers_steps(residual, radius):
    x = torch.linspace(-1, 1, 20, **DOUBLE).view(4, 5).requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        root(residual, torch.zeros_like(x), (x,), solver=Picard())
    (told,) = re.findall(r"Jacobian there is about ([\d.e-]+):", "".join(str(each.message) for each in caught))
    assert float(told) == pytest.approx(radius, rel=0.1)


class Table(torch.autograd.Function):
    """A function without a derivative."""

    @staticmethod
    def forward(ctx, z):
        return z**3

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("no backward")


@pytest.mark.parametrize("operation", [Table.apply, lambda z: torch.as_tensor(z.cpu().numpy() ** 3).to(z)])
@pytest.mark.parametrize("shift", [torch.tensor(1.0), nn.Parameter(torch.tensor(1.0))])
def test_policies_without_a_derivative_in_z_need_none(operation, shift):
    shift = shift.to(torch.get_default_device()).double()
    z = root(lambda z, a: operation(z) + z - a, torch.ones(2, 2, **DOUBLE), (shift,), gradient=PhantomGradient())
    torch.testing.assert_close(z**3 + z, shift.detach().expand(2, 2), rtol=1e-5, atol=1e-6)
    if shift.requires_grad:
        z.sum().backward() if shift.is_leaf else torch.autograd.grad(z.sum(), shift)


@pytest.mark.filterwarnings("ignore::implicit.logs.ConvergenceWarning")
@pytest.mark.parametrize("loop", [Eager(), Eager(3), Captured(2)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_few_products_are_no_fewer_for_a_root(loop, dtype):
    torch.manual_seed(0)
    matrix = (torch.eye(8) + 0.2 * torch.randn(8, 8) / 8**0.5).to(dtype)
    x, errors = torch.randn(4, 8).to(dtype).requires_grad_(), []
    for products in (1, 2, 4, 20):
        policy = ImplicitGradient(max_steps=products, loop=loop)
        z = root(lambda z, x: z @ matrix - x, torch.zeros_like(x).detach(), (x,), gradient=policy, rtol=1e-2)
        (found,) = torch.autograd.grad(z.sum(), x)
        exact = torch.linalg.solve(matrix.double(), torch.ones(8, 4, **DOUBLE)).T
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] < 0.6  # no worse than Jacobian-free, which takes one
    assert errors[3] < (1e-2 if dtype == torch.float16 else 1e-3)


@pytest.mark.parametrize("width", [3, 6, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_near_the_solution_is_no_harder_to_improve(width, dtype):
    torch.manual_seed(0)
    matrix = (torch.eye(width) + 0.2 * torch.randn(width, width) / width**0.5).to(dtype)
    x = torch.randn(4, width).to(dtype).requires_grad_()
    found = []
    for reuse in (True, False):
        z = root(
            lambda z, x: (z + 0.3 * z.sin()) @ matrix - x,
            torch.zeros_like(x).detach(),
            (x,),
            solver=Anderson(period=1),
            rtol=1e-5,
            max_steps=200,
            gradient=ImplicitGradient(rtol=1e-4, reuse=reuse),
        )
        found.append(torch.autograd.grad(z.sum(), x)[0])  # a warning would be an error
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:the rows .*depend on each other")
def test_histories_of_rows_that_depend_on_each_other_are_not_used():
    torch.manual_seed(0)
    matrix, x = 0.3 * torch.randn(5, 5, **DOUBLE), torch.randn(6, 5, **DOUBLE, requires_grad=True)

    def cell(z, x):
        return torch.tanh(0.7 * z @ matrix + 0.3 * z.roll(1, 0) @ matrix + x)

    options = {"solver": Anderson(period=1), "rtol": 1e-10, "max_steps": 1000}
    shared, free = (
        torch.autograd.grad(fixed_point(cell, torch.zeros_like(x), (x,), gradient=policy, **options).sum(), x)[0]
        for policy in (ShineGradient(), PhantomGradient())
    )
    torch.testing.assert_close(shared, free)
    found = fixed_point(
        cell, torch.zeros_like(x), (x,), gradient=ImplicitGradient(reuse=True, rtol=1e-10, max_steps=1000), **options
    )
    again = fixed_point(
        cell, torch.zeros_like(x), (x,), gradient=ImplicitGradient(rtol=1e-10, max_steps=1000), **options
    )
    slopes = [torch.autograd.grad(each.sum(), x)[0] for each in (found, again)]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6, 1e9])
def test_rows_without_a_root_end_alike_in_any_unit(scale):
    c = torch.tensor([[-1.0], [0.5]], **DOUBLE)
    solution = solve_root(lambda z, c: scale * (z**2 + c) / (1 + z.abs()), torch.full((2, 1), 2.0, **DOUBLE), (c,))
    assert solution.status.tolist() == [Status.CONVERGED, Status.STALLED]


@pytest.mark.parametrize("as_root", [False, True], ids=["fixed point", "root"])
def test_a_backward_solve_as_exact_as_the_dtype_allows_says_so(as_root):
    torch.manual_seed(0)
    weight, x = 0.1 * torch.randn(16, 16), torch.randn(8, 16)
    weight, x = weight.bfloat16(), x.bfloat16().requires_grad_()

    def cell(z, x):
        return torch.tanh(z @ weight) + x

    find, f = (root, lambda z, x: z - cell(z, x)) if as_root else (fixed_point, cell)
    z = find(f, torch.zeros_like(x), (x,), rtol=1e-2, gradient=ImplicitGradient(solver=GMRES()))
    with pytest.warns(ConvergenceWarning, match="as small as the dtype of f, or autocast, allows: set rtol to 4e-03"):
        z.float().sum().backward()


class Scaled(nn.Module):
    """A smooth cell whose state has units, or an offset."""

    def __init__(self, unit, offset):
        super().__init__()
        self.inner, self.outer, self.offset = nn.Linear(8, 8), nn.Linear(8, 8), offset
        with torch.no_grad():
            self.inner.weight.mul_(0.6)
        self.register_buffer("unit", unit)

    def forward(self, z, x):
        return self.offset + self.unit * torch.tanh(self.inner((z - self.offset) / self.unit) + self.outer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("decades", "offset"), [(3, 0.0), (4, 0.0), (6, 0.0), (0, 1e4), (0, 1e5)])
@pytest.mark.parametrize("seed", range(3))
def test_healthy_cells_in_any_unit_are_not_said_to_hide_a_derivative(dtype, decades, offset, seed):
    torch.manual_seed(seed)
    cell, x = Scaled(torch.logspace(-decades, decades, 8), offset).to(dtype), torch.randn(8, 8, dtype=dtype)
    layer = Equilibrium(cell, rtol=1e-5, max_steps=300, initial=lambda x: torch.full_like(x, offset))
    assert not [finding for finding in diagnose(layer, x) if "misses part" in str(finding)]
