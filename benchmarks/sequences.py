"""Seconds of a recurrent cell over all steps of a sequence at once, beside its loop."""

from __future__ import annotations

import statistics
from functools import partial

import torch
from torch import Tensor, nn

from experiments.measuring.timing import Runs, by_turns
from models import Newton, unroll

from .report import Cell, Progress, Table

LENGTHS = (64, 256, 1024, 4096, 16384)
WAYS = {"full": Newton(), "diagonal": Newton(diagonal=True)}
BATCH, FEATURES, WIDTH, RTOL = 1, 4, 8, 1e-5


def sequences(quick: bool, progress: Progress) -> Table:
    """Seconds of a GRU's value, and of its value and gradient, over those of the loop: medians of runs in turn."""
    rows: list[dict[str, Cell]] = []
    for length in LENGTHS[:1] if quick else LENGTHS:
        progress(f"sequences: {length} steps")
        torch.manual_seed(0)
        cell, x = nn.GRUCell(FEATURES, WIDTH), torch.randn(BATCH, length, FEATURES)
        first = torch.zeros(BATCH, WIDTH)
        found = {name: unroll(cell, x, first, rtol=RTOL, newton=newton) for name, newton in WAYS.items()}
        with torch.no_grad():
            expected = _loop(cell, x, first)
        for kind, run in (("value", _value), ("value and gradient", _gradient)):
            runs: Runs = {"loop": partial(run, cell, partial(_loop, cell, x, first))}
            for name, newton in WAYS.items():
                runs[name] = partial(run, cell, partial(_swept, cell, x, first, newton))
            times = by_turns(runs, 2 if quick else 5, warm=True)
            row: dict[str, Cell] = {"steps": length, "of": kind, "loop ms": 1e3 * statistics.median(times["loop"])}
            for name, solution in found.items():
                ratios = [one / other for one, other in zip(times[name], times["loop"], strict=True)]
                row[f"{name} ÷ loop"] = statistics.median(ratios)
                row[f"{name} sweeps"] = int(solution.steps.max())
                row[f"{name} error"] = float((solution.value.detach() - expected).abs().max())
            rows.append(row)
    exponent = float(found["full"].lyapunov_exponent().mean())
    return Table(
        f"A GRU of width {WIDTH} over a sequence, batch {BATCH}: all steps at once (rtol={RTOL:g}) beside the loop",
        rows,
        [f"Lyapunov exponent of the longest: {exponent:.2f} nepers a step. Error: the largest of all states."],
    )


def _loop(cell: nn.GRUCell, x: Tensor, h: Tensor) -> Tensor:
    states = []
    for inputs in x.unbind(1):
        h = cell(inputs, h)
        states.append(h)
    return torch.stack(states, 1)


def _swept(cell: nn.GRUCell, x: Tensor, h: Tensor, newton: Newton) -> Tensor:
    value: Tensor = unroll(cell, x, h, rtol=RTOL, newton=newton).value
    return value


@torch.no_grad()
def _value(cell: nn.GRUCell, states: partial[Tensor]) -> object:
    return states()


def _gradient(cell: nn.GRUCell, states: partial[Tensor]) -> object:
    return torch.autograd.grad(states().square().mean(), list(cell.parameters()))
