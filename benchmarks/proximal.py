"""PGD and FISTA beside deepinv's, unrolled and at infinite depth: evaluations of gradient and prox, seconds, errors."""

from __future__ import annotations

import importlib
import statistics
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from experiments.measuring.timing import Runs, by_turns
from implicit import ConvergenceWarning
from solvers import GMRES, Anderson, Broyden, Picard, Solver

from .cells import Case
from .counting import Finished, Watch, row_norms
from .differentiation import Counter
from .exact import differentiated, joined, relative_error
from .lasso import STEPS, Lasso, Network, Seen, Shrinkage, as_it_is, deepinv, equilibrium, lasso, unrolled
from .peers import LIMIT, installed
from .report import Cell, Progress, Table

DEPTH = 20
RTOL = 1e-4
SMALL, LARGE = (8, 60, 40), (64, 512, 256)
"""Rows, equations, unknowns."""
READING = (
    f"DEQ: to {RTOL:g} relative forward and backward, ours in every row, deepinv in the mean of the rows; Anderson: "
    "the defaults of both."
)
OWN: dict[str, Solver] = {"Anderson": Anderson(), "Broyden": Broyden()}
Make = Callable[[Lasso, Seen], Network]


def _deepinv(method: str, rtol: float | None, problem: Lasso, seen: Seen, *, anderson: bool = False) -> Network:
    """deepinv's network: at infinite depth given a tolerance, with Anderson's method in both passes if `anderson`."""
    if rtol is None:
        return deepinv(problem, method, DEPTH, seen)
    backward = importlib.import_module("deepinv.optim").DEQConfig(
        anderson_acceleration_backward=anderson, max_iter_backward=STEPS
    )
    options = {"DEQ": backward, "early_stop": True, "thres_conv": rtol, "anderson_acceleration": anderson}
    return deepinv(problem, method, STEPS, seen, **options)


def _unrolled(method: str, depth: int, problem: Lasso, seen: Seen) -> Network:
    return unrolled(problem, method, depth, seen)


def _equilibrium(solver: Solver, backward: Solver, rtol: float, problem: Lasso, seen: Seen) -> Network:
    return equilibrium(problem, solver, backward, rtol, seen)


def proximal_evaluations(quick: bool, progress: Progress) -> Table:
    """Evaluations until every row meets the test: ours and deepinv's algorithms on the same problem."""
    problem = lasso(*SMALL)
    rows: list[dict[str, Cell]] = []
    ours: dict[str, Make] = {
        "PGD": partial(_unrolled, "PGD", LIMIT),
        "FISTA": partial(_unrolled, "FISTA", LIMIT),
        **{f"PGD, {name}": partial(_equilibrium, solver, solver, 1e-12) for name, solver in OWN.items()},
    }
    peers: dict[str, Make] = {}
    if installed("deepinv"):
        peers = {
            "PGD": lambda problem, seen: deepinv(problem, "PGD", LIMIT, seen),
            "FISTA": lambda problem, seen: deepinv(problem, "FISTA", LIMIT, seen),
            "PGD, Anderson": lambda problem, seen: deepinv(problem, "PGD", LIMIT, seen, anderson_acceleration=True),
        }
    for name, make in ours.items():
        progress(f"least squares with an l1 penalty: {name}")
        row: dict[str, Cell] = {"algorithm": name}
        for digits in (4, 8):
            row[f"1e-{digits} ours"] = _evaluations(make, problem, 10.0**-digits)
            if name in peers:
                row[f"1e-{digits} deepinv"] = _evaluations(peers[name], problem, 10.0**-digits)
        rows.append(row)
    return Table(
        "PGD and FISTA: evaluations of gradient and prox a row until ‖step(z) − z‖ ≤ rtol ‖step(z)‖",
        rows,
        [
            f"½‖Az − y‖² + λ‖z‖₁, {_size(problem)}, float64, from Aᵀy, the same step and momenta on both sides; each "
            "evaluation is one gradient and one prox, looked at where it happens. PGD is our gd, FISTA our Nesterov, "
            "with the step's increment as transform. Anderson: each with its defaults. deepinv has no Broyden.",
        ],
    )


def _evaluations(make: Make, problem: Lasso, rtol: float) -> Cell:
    watch = Watch(len(problem.target), rtol, LIMIT)

    def seen(z: Tensor, image: Tensor) -> Tensor:
        watch.note(row_norms(image - z).tolist(), row_norms(image).tolist())
        if watch.done:
            raise Finished
        return image

    with suppress(Finished), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        make(problem, seen)(problem.target)
    return watch.evaluations if watch.evaluations < float("inf") else "failed"


NETWORKS: dict[str, tuple[Make, Make]] = {
    f"PGD, {DEPTH} layers": (partial(_unrolled, "PGD", DEPTH), partial(_deepinv, "PGD", None)),
    f"FISTA, {DEPTH} layers": (partial(_unrolled, "FISTA", DEPTH), partial(_deepinv, "FISTA", None)),
    "PGD, DEQ, plain": (partial(_equilibrium, Picard(), Picard(), RTOL), partial(_deepinv, "PGD", RTOL)),
    "PGD, DEQ, Anderson": (
        partial(_equilibrium, Anderson(), Anderson(period=3), RTOL),
        partial(_deepinv, "PGD", RTOL, anderson=True),
    ),
}
"""Network → how to make ours and deepinv's."""


def proximal_seconds(quick: bool, progress: Progress) -> Table:
    """Seconds of inference and of a training step."""
    problem = lasso(*(SMALL if quick else LARGE), dtype=torch.float32)
    rows: list[dict[str, Cell]] = []
    for name, makes in NETWORKS.items():
        built = {side: make(problem, as_it_is) for side, make in zip(_sides(), makes)}
        for kind, run in (("inference", _infer), ("training step", _train)):
            progress(f"PGD and FISTA, seconds: {name}, {kind}")
            runs: Runs = {side: partial(run, network, problem) for side, network in built.items()}
            by_turns(runs, 1, warm=False)
            times = by_turns(runs, 2 if quick else 11, warm=False)
            row: dict[str, Cell] = {"network": name, "of": kind}
            row |= {side: 1e3 * statistics.median(found) for side, found in times.items()}
            if "deepinv" in times:
                ratios = sorted(ours / theirs for ours, theirs in zip(times["ours"], times["deepinv"]))
                row |= {"ratio": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}
            rows.append(row)
    return Table(
        "PGD and FISTA as networks: ms of inference and of a training step, ours and deepinv's",
        rows,
        [
            f"{_size(problem)}, float32; ratio: ours over deepinv, median, least and largest of repeats in turn. Both "
            f"learn λ and differentiate in y, too. {READING}",
            "deepinv evaluates no cost here, but for its Anderson, which does so in every step; it recomputes Aᵀy in "
            "each step. It has no equilibrium of FISTA.",
        ],
    )


def proximal_gradients(quick: bool, progress: Progress) -> Table:
    """Work and error of one gradient, against the equilibrium's."""
    problem = lasso(*SMALL)
    reference = _reference(problem)
    rows: list[dict[str, Cell]] = []
    for name, makes in NETWORKS.items():
        progress(f"PGD and FISTA, gradients: {name}")
        rows += [
            {"network": name, "by": side, **_gradient(make, problem, reference)} for side, make in zip(_sides(), makes)
        ]
    return Table(
        "PGD and FISTA as networks: evaluations, products and gradient error",
        rows,
        [
            "of the gradient of ‖z‖² in y and λ. evaluations of gradient and prox, products of the step's Jacobian "
            "(the last one left out), of the batch, both as counted where they happen. error: against dense linear "
            f"algebra at the equilibrium, {_size(problem)}, float64; with {DEPTH} layers it is that of stopping there. "
            f"{READING}",
        ],
    )


def _size(problem: Lasso) -> str:
    equations, unknowns = problem.matrix.shape
    return f"{len(problem.target)} rows, {equations} equations, {unknowns} unknowns"


def _sides() -> tuple[str, ...]:
    return ("ours", "deepinv") if installed("deepinv") else ("ours",)


@torch.no_grad()
def _infer(network: Network, problem: Lasso) -> object:
    return network(problem.target)


def _train(network: Network, problem: Lasso) -> object:
    y = problem.target.clone().requires_grad_()
    return torch.autograd.grad(network(y).square().sum(), (y, problem.weight))


def _gradient(make: Make, problem: Lasso, reference: Tensor) -> dict[str, Cell]:
    counter, evaluations = Counter(), 0

    def seen(z: Tensor, image: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return counter.through(image) if image.requires_grad else image

    y = problem.target.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        z = make(problem, seen)(y)
        found = joined(torch.autograd.grad(z.square().sum(), (y, problem.weight)))
    return {
        "evaluations": evaluations,
        "products": counter.calls - 1,
        "error": relative_error(found, reference),
    }


def _reference(problem: Lasso) -> Tensor:
    """The equilibrium's gradient."""
    with torch.no_grad():
        solution = equilibrium(problem, Anderson(), GMRES(), 1e-14)(problem.target)
    case = Case(Shrinkage(problem), problem.target, 2 * solution)
    return differentiated(case, solution).gradient
