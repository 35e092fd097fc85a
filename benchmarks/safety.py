"""How often a failure is reported, and a success recognised: families of problems with a known outcome."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from solvers import Picard, Solution, Solver, Status, solve

from .evaluations import SOLVERS
from .problem import Map
from .report import Cell, Progress, Table

EACH = 20
"""Number of problems in a family."""

Case = tuple[Map, Tensor]
"""f and z0, of one row."""


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(_dtype(seed))


def _dtype(seed: int) -> torch.dtype:
    return torch.float64 if seed % 2 else torch.float32


def _dim(seed: int) -> int:
    return 1 + 7 * seed % 32


def _symmetric(seed: int, least: float, largest: float) -> Tensor:
    """A random symmetric matrix with eigenvalues drawn from an interval, its ends among them."""
    dim = _dim(seed)
    basis = torch.linalg.qr(_draw(seed, dim, dim).double())[0]
    share = torch.rand(dim, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    share[0], share[-1] = 0, 1
    return (basis * torch.lerp(torch.tensor(least).double(), torch.tensor(largest).double(), share) @ basis.T).to(
        _dtype(seed)
    )


def _translation(seed: int) -> Case:
    """`z + b`."""
    shift = 10.0 ** (seed % 7 - 3) * _draw(seed, 1, _dim(seed))
    return lambda z: z + shift, _draw(seed + 1, 1, _dim(seed)).to(shift.dtype)


def _exponential(seed: int) -> Case:
    """`exp(z) + 1`, above z everywhere."""
    return lambda z: torch.exp(z) + 1, _draw(seed, 1, _dim(seed))


def _square(seed: int) -> Case:
    """`z² + b` with b > 1/4, above z everywhere; for b near 1/4 only just."""
    shift = 0.25 + 2.0 ** -(seed % 10)
    return lambda z: z**2 + shift, 0.5 * _draw(seed, 1, _dim(seed))


def _poisoned(seed: int) -> Case:
    """A slow contraction that returns NaN from its k-th evaluation on."""
    matrix, shift, calls = _symmetric(seed, -0.9, 0.999), _draw(seed, 1, _dim(seed)), itertools.count()

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ matrix + shift) * (1 if next(calls) < seed % 4 else math.nan)

    return f, torch.zeros_like(shift)


def _overflowing(seed: int) -> Case:
    """`3 |z| + s`, above z everywhere, in half or single precision, started near the root of its largest number."""
    dtype = torch.float32 if seed % 2 else torch.float16
    start = torch.finfo(dtype).max ** 0.5 * torch.rand(1, _dim(seed), generator=torch.Generator().manual_seed(seed))
    start = start.to(dtype)
    shift = start.mean()
    return lambda z: 3 * z.abs() + shift, start


def _expanding(seed: int) -> Case:
    """Affine with eigenvalues from −2 to −1.2 or from 1.2 to 2: a fixed point that plain iteration leaves."""
    matrix = _symmetric(seed, 1.2, 2.0) * (1 if seed % 4 < 2 else -1)
    shift = _draw(seed, 1, _dim(seed))
    return lambda z: z @ matrix + shift, torch.zeros_like(shift)


def _cycling(seed: int) -> Case:
    """A reflection: plain iteration alternates between two points."""
    shift = _draw(seed, 1, _dim(seed))
    return lambda z: shift - z, torch.zeros_like(shift)


def _solvable(seed: int) -> Case:
    """A contraction, affine or through a tanh, of factor up to 0.97 and scale from 1e-6 to 1e6."""
    scale = 10.0 ** (seed % 13 - 6)
    matrix = _symmetric(seed, -0.97 * (seed % 10) / 9, 0.97 * (seed % 3) / 2)
    shift = _draw(seed + 1, 1, _dim(seed)).to(matrix.dtype)
    if seed % 5 < 3:
        return lambda z: z @ matrix + scale * shift, torch.zeros_like(shift)
    return lambda z: scale * torch.tanh((z / scale) @ matrix + shift), torch.zeros_like(shift)


Family = tuple[Callable[[int], Case], set[Status]]
"""How to make its problems, and the statuses that describe them correctly."""
_EXPLODED = {Status.DIVERGED, Status.NON_FINITE, Status.STALLED}  # STALLED if the budget ends before growth shows
FAMILIES: dict[str, Family] = {
    "z + b": (_translation, {Status.STALLED, Status.DIVERGED}),
    "exp(z) + 1": (_exponential, _EXPLODED),
    "z² + b, b > 1/4": (_square, _EXPLODED),
    "NaN from step k on": (_poisoned, {Status.NON_FINITE}),
    "out of the dtype's range": (_overflowing, _EXPLODED),
}
RUNAWAYS: dict[str, Family] = {
    "affine, expanding": (_expanding, {Status.DIVERGED}),
    "affine, cycling": (_cycling, {Status.STALLED}),
}


def failed_safely(quick: bool, progress: Progress) -> Table:
    """Problems without a fixed point: every failure must be reported."""
    each = 4 if quick else EACH
    rows: list[dict[str, Cell]] = []
    for name, solver in SOLVERS.items():
        progress(f"failed safely: {name}")
        found = [_row(name, solver, family, each) for family in FAMILIES]
        total = {key: sum(int(row[key] or 0) for row in found) for key in ("reported", "as expected", "of")}
        rows += [{"solver": name, "problems": "all", **total}, *found]
    rows += [_row("Picard", Picard(), family, each) for family in RUNAWAYS]
    notes = [
        "one row each, seeded, dims 1 to 32, float16 to float64, the solve's defaults. as expected: STALLED or "
        "DIVERGED for z + b, these or NON_FINITE for what explodes, NON_FINITE for NaN, DIVERGED for what expands, "
        "STALLED for what cycles.",
    ]
    return Table("Failed safely: problems without a fixed point, or that plain iteration misses", rows, notes)


def believed(quick: bool, progress: Progress) -> Table:
    """Problems with a fixed point in reach, none of which should be reported as failed."""
    count = 10 if quick else 100
    rows: list[dict[str, Cell]] = []
    for name, solver in SOLVERS.items():
        progress(f"solvable problems: {name}")
        found: Counter[Status] = Counter()
        for seed in range(count):
            f, z0 = _solvable(seed)
            rtol = 1e-8 if z0.dtype == torch.float64 else 1e-4
            found += _counted(solve(f, z0, solver=solver, rtol=rtol, atol=0.0, max_steps=1000))
        rows.append({"solver": name, "reported failed": count - found[Status.CONVERGED], "of": count, **_text(found)})
    notes = ["contractions of factor up to 0.97, dims 1 to 32; rtol 1e-8 in float64, 1e-4 in float32, 1,000 steps."]
    return Table("Solvable problems reported as failed, which none should be", rows, notes)


def _statuses(make: Callable[[int], Case], each: int, solver: Solver) -> Counter[Status]:
    found: Counter[Status] = Counter()
    for seed in range(each):
        f, z0 = make(seed)
        found += _counted(solve(f, z0, solver=solver))
    return found


def _counted(solution: Solution) -> Counter[Status]:
    return Counter(Status(code) for code in solution.status.tolist())


def _row(name: str, solver: Solver, family: str, each: int) -> dict[str, Cell]:
    make, expected = (FAMILIES | RUNAWAYS)[family]
    found = _statuses(make, each, solver)
    return {
        "solver": name,
        "problems": family,
        "reported": each - found[Status.CONVERGED],
        "as expected": sum(found[status] for status in expected),
        "of": each,
        **_text(found),
    }


def _text(found: Counter[Status]) -> dict[str, Cell]:
    return {"statuses": ", ".join(f"{count} {status.name}" for status, count in sorted(found.items()))}
