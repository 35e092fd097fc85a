"""Vector–Jacobian products and errors of every gradient, and the products to an equal error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial

from implicit import (
    ImplicitGradient,
    NeumannGradient,
    PhantomGradient,
    ReversibleGradient,
    ShineGradient,
    UnrolledGradient,
)
from solvers import GMRES, Anderson, Broyden, Picard, Reversible, Solver

from .cells import CASES
from .differentiation import Found, Layer, measured, ours, scipy_gmres, torchdeq
from .exact import Exact, exact
from .peers import LIMIT, installed
from .report import Cell, Progress, Table

SOLVERS: dict[str, Solver] = {
    "GMRES()": GMRES(),
    "GMRES(restart=100)": GMRES(restart=100),
    "Anderson(period=3)": Anderson(period=3),
    "Broyden()": Broyden(),
    "Picard()": Picard(),
}
REUSE = "GMRES(), reuse=True"
GRADIENTS: dict[str, Layer] = {
    **{
        f"ImplicitGradient({name})": ours(ImplicitGradient(solver, max_steps=LIMIT)) for name, solver in SOLVERS.items()
    },
    f"ImplicitGradient({REUSE})": ours(ImplicitGradient(GMRES(), reuse=True)),
    **{f"NeumannGradient({steps})": ours(NeumannGradient(steps)) for steps in (2, 5, 10)},
    **{f"PhantomGradient({steps})": ours(PhantomGradient(steps)) for steps in (1, 5)},
    "ShineGradient()": ours(ShineGradient()),
    "UnrolledGradient(10)": ours(UnrolledGradient(10)),
    "ReversibleGradient()": ours(ReversibleGradient(), Reversible()),
    "ReversibleGradient(), z* to 1e-4": ours(ReversibleGradient(), Reversible(), rtol=1e-4),
}
TORCHDEQ = ("fixed_point_iter", "anderson", "broyden")
TARGETS = (1e-4, 1e-6)
"""Errors of the gradient at which products are compared."""
QUICK = ("Gaussian 0.9", "rotation 1.1")

Solve = Callable[[float], Found]
"""Tolerance of the backward solve → its gradient."""
Ladder = dict[float, Found]
"""Gradients by tolerance, from loose to tight, until the smallest target is reached."""


def backward(quick: bool, progress: Progress) -> Iterator[tuple[str, Table]]:
    """A table for each case, and one of the products to an equal error."""
    names = QUICK if quick else tuple(CASES)
    ladders: dict[str, dict[str, Ladder]] = {}
    for name in names:
        ladders[name] = {}
        for solver, solve in _solves(exact(name)).items():
            progress(f"products to an equal error: {name}, {solver}")
            ladders[name][solver] = _ladder(solve, step=1 if quick else 4)
        progress(f"gradients: {name}")
        yield f"backward {name}", _gradients(name, ladders[name])
    yield "products", _products(ladders)


def _solves(exact: Exact) -> dict[str, Solve]:
    """Every iterative backward solve."""

    def own(solver: Solver, reuse: bool, rtol: float) -> Found:
        return measured(exact, ours(ImplicitGradient(solver, rtol=rtol, max_steps=LIMIT, reuse=reuse)))

    def peer(method: str, rtol: float) -> Found:
        options: dict[str, float | str] = {"b_solver": method, "b_tol": rtol, "b_stop_mode": "rel", "b_max_iter": LIMIT}
        return measured(exact, torchdeq(exact.solution, options))

    found: dict[str, Solve] = {name: partial(own, solver, False) for name, solver in SOLVERS.items()}
    found[REUSE] = partial(own, GMRES(), True)
    if installed("scipy"):
        found["scipy gmres, no restart"] = partial(scipy_gmres, exact)
    if installed("torchdeq"):
        found |= {f"torchdeq {method}": partial(peer, method) for method in TORCHDEQ}
    return found


def _ladder(solve: Solve, step: int) -> Ladder:
    """Solve at `step` tolerances per decade; ends once a solve fails, since a tighter one would fail too."""
    found: Ladder = {}
    for rung in range(2 * step, 10 * step + 1):
        rtol = 10 ** (-rung / step)
        found[rtol] = solve(rtol)
        if found[rtol].error <= TARGETS[-1] or found[rtol].products >= LIMIT or found[rtol].warned:
            break
    return found


def _gradients(name: str, ladders: dict[str, Ladder]) -> Table:
    case = exact(name)
    rows = [_row(gradient, measured(case, layer)) for gradient, layer in GRADIENTS.items()]
    if installed("torchdeq"):
        rows.append(
            {**_row("torchdeq ift=True", measured(case, torchdeq(case.solution, {}))), "tolerance": "1e-06, absolute"}
        )
        wanted = next(row["error"] for row in rows)
        assert isinstance(wanted, float)
        for method in TORCHDEQ:
            rows.append(_as_good(f"torchdeq {method}", ladders[f"torchdeq {method}"], wanted))
    return Table(
        f"Backward: vector–Jacobian products and gradient error, {name}",
        rows,
        [
            f"spectral radius of J {case.spectral_radius:.2f}, condition of I − J {case.condition:.1f}, the largest of "
            f"{len(case.solution)} rows of {case.jacobian.shape[-1]} dimensions, float64; z* to 1e-12. error and "
            "cosine: of the gradient in x and all parameters, against dense linear algebra. products: counted inside "
            "the cell, but for the one to x and the parameters that every gradient takes; a row: as recorded, until "
            "each row's own solve is done.",
            "torchdeq ift=True: with its default backward solve, fixed_point_iter, at most 40; the others at the "
            "loosest tolerance that has an error as small as ImplicitGradient's. It never warns.",
        ],
    )


def _row(gradient: str, found: Found) -> dict[str, Cell]:
    return {
        "gradient": gradient,
        "tolerance": "1e-04" if gradient.startswith("ImplicitGradient") else None,
        "products": found.products,
        "a row": found.products_a_row,
        "error": found.error,
        "cosine": found.cosine,
        "warns": "yes" if found.warned else None,
    }


def _as_good(name: str, ladder: Ladder, wanted: float) -> dict[str, Cell]:
    for tolerance, found in ladder.items():
        if found.error <= wanted:
            return {**_row(name, found), "tolerance": f"{tolerance:.0e}"}
    return {"gradient": name, "tolerance": "not reached"}


def _products(ladders: dict[str, dict[str, Ladder]]) -> Table:
    """The fewest products on each ladder."""
    rows: list[dict[str, Cell]] = []
    for target in TARGETS:
        fewest = {
            name: {solver: _fewest(ladder, target) for solver, ladder in found.items()}
            for name, found in ladders.items()
        }
        for solver in next(iter(fewest.values())):
            counts = {name: found[solver] for name, found in fewest.items()}
            ratios = [found["GMRES()"] / found[solver] for found in fewest.values() if found[solver] < math.inf]
            rows.append(
                {
                    "error": f"{target:.0e}",
                    "backward solve": solver,
                    **{name: count if count < math.inf else "failed" for name, count in counts.items()},
                    "GMRES() / this": statistics.geometric_mean(ratios) if ratios else None,
                    "of": len(ratios),
                }
            )
    return Table(
        "Backward: products of the batch to an equal gradient error",
        rows,
        [
            "the fewest at any tolerance of a ladder from 1e-2 to 1e-10, relative on both sides; failed: not reached "
            f"within {LIMIT:,}. GMRES() / this: geometric mean over the cells where both get there. torchdeq's default "
            "is fixed_point_iter.",
        ],
    )


def _fewest(ladder: Ladder, target: float) -> float:
    return min((found.products for found in ladder.values() if found.error <= target), default=math.inf)
