"""Evaluations of f on the table of classical problems, ours and the peers'."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from torch import Tensor

from solvers import Anderson, Broyden, Monotone, NewtonKrylov, Picard, Solver, solve

from .contenders import contenders
from .counting import relative_residual
from .peers import LIMIT
from .problem import Problem
from .problems import PROBLEMS
from .report import Cell, Progress, Table

SOLVERS: dict[str, Solver] = {
    "Picard": Picard(),
    "Anderson": Anderson(),
    "Broyden": Broyden(),
    "Monotone": Monotone(),
    "NewtonKrylov": NewtonKrylov(),
}
Counts = dict[str, float | None]
"""Evaluations by problem; infinite for a failure, None if it was not tried."""
QUICK = ("Chandrasekhar 0.9", "Kepler", "Gaussian mixture", "tanh 0.9")


def evaluations(digits: int, quick: bool, progress: Progress) -> dict[str, Table]:
    """Tables at the tolerance 1e-digits: ours, the peers', and a summary of both."""
    rtol, tolerance = 10.0**-digits, f"1e-{digits}"
    ours: dict[str, Counts] = {name: {} for name in SOLVERS}
    peers: dict[str, Counts] = {name: {} for name in contenders()}
    titles = QUICK if quick else tuple(PROBLEMS)
    for title in titles:
        progress(f"evaluations at rtol {tolerance}: {title}")
        for name, solver in SOLVERS.items():
            ours[name][title] = _ours(solver, PROBLEMS[title], rtol)
        for name, contender in contenders().items():
            peers[name][title] = contender(PROBLEMS[title], rtol)
    best = {title: min(counts[title] or math.inf for counts in ours.values()) for title in titles}
    what = f"Evaluations of f a row until ‖f(z) − z‖ ≤ {tolerance} ‖f(z)‖, float64"
    how_ours = (
        f"mean over the rows; failed: a row not there within {LIMIT:,}. Solution.evaluations, Jacobian products "
        "included, which a test holds to counts inside f; the residual is checked by evaluating what was returned."
    )
    how_peers = (
        "the peers' defaults; counted inside f, row by row, up to the first evaluation that meets the test, wherever "
        "they stop themselves. plain: fixed-point iteration; –: needs arrays of its own framework. newton, chord: with "
        "their dense Jacobians, each as many products as a row has entries."
    )
    summary = [_summary(name, counts, best) for name, counts in (ours | peers).items()]
    return {
        "ours": Table(what, _by_problem(ours, titles), [how_ours]),
        "peers": Table(f"{what}: peers", _by_problem(peers, titles) if peers else [], [how_peers]),
        "summary": Table(
            f"The same over the best of ours on each problem, rtol {tolerance}",
            summary,
            ["geometric mean and worst of the ratios where it did not fail."],
        ),
    }


def _by_problem(counts: dict[str, Counts], titles: Sequence[str]) -> list[dict[str, Cell]]:
    return [{"problem": title, **{name: _cell(found[title]) for name, found in counts.items()}} for title in titles]


def _ours(solver: Solver, problem: Problem, rtol: float) -> float:
    solution = solve(problem.f, problem.z0, solver=solver, rtol=rtol, atol=0.0, max_steps=LIMIT)
    value = solution.value
    assert isinstance(value, Tensor)  # as z0 is
    # f of the same batch rounds as in the solve, so the test holds to the last digits
    met = bool((relative_residual(problem, value) <= 1.001 * rtol).all())
    within = bool(solution.converged.all()) and int(solution.evaluations.max()) <= LIMIT
    return solution.evaluations.double().mean().item() if met and within else math.inf


def _summary(name: str, counts: Counts, best: dict[str, float]) -> dict[str, Cell]:
    tried = {title: count for title, count in counts.items() if count is not None and best[title] < math.inf}
    ratios = [count / best[title] for title, count in tried.items() if count < math.inf]
    return {
        "solver": name,
        "geometric mean": statistics.geometric_mean(ratios) if ratios else None,
        "worst": max(ratios, default=None),
        "failed": len(tried) - len(ratios),
        "of": len(tried),
    }


def _cell(count: float | None) -> Cell:
    if count is None:
        return "–"
    return count if count < math.inf else "failed"
