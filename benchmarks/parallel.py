"""Branches batched and in a loop; time against depth and along sequences, serial and parallel."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from experiments.measuring.depth_times import seconds_of, sweep_errors, swept
from experiments.measuring.timing import Runs, by_turns
from models.branches import Branches

from .report import Cell, Progress, Table
from .run import run
from .sequences import sequences

SHAPES = ((1, 17, 64), (8, 17, 32), (8, 65, 16), (32, 65, 8))
"""Batch, tokens, branches; width 192, three heads, hidden 768, one block a branch."""
DEPTHS = (4, 16, 64, 256)


def compare(quick: bool, folder: Path) -> None:
    """Measure everything, print it and write `parallel.json` and `parallel.png` into the folder."""
    run("parallel", _tables, (), quick, folder)


def _tables(quick: bool, progress: Progress) -> Iterator[tuple[str, Table]]:
    yield "branches", branches(quick, progress)
    yield "depth", depth(quick, progress)
    yield "sequences", sequences(quick, progress)


def branches(quick: bool, progress: Progress) -> Table:
    """Seconds of all branches as one computation over those of a loop."""
    rows: list[dict[str, Cell]] = []
    for batch, tokens, count in SHAPES[:1] if quick else SHAPES:
        progress(f"branches: batch {batch}, {tokens} tokens, {count} branches")
        torch.manual_seed(0)
        body, x = Branches(count, depth=1).eval(), torch.randn(batch, tokens, 192)

        def infer(batched: bool, body: Branches = body, x: Tensor = x) -> Tensor:
            body.batched = batched
            with torch.inference_mode():
                output: Tensor = body(x)
            return output

        runs: Runs = {"batched": partial(infer, True), "loop": partial(infer, False)}
        times = by_turns(runs, 2 if quick else 15, warm=True)
        ratios = sorted(a / b for a, b in zip(times["batched"], times["loop"], strict=True))
        rows.append(
            {
                "batch": batch,
                "tokens": tokens,
                "branches": count,
                "batched ms": 1e3 * statistics.median(times["batched"]),
                "loop ms": 1e3 * statistics.median(times["loop"]),
                "batched ÷ loop": statistics.median(ratios),
                "least": ratios[0],
                "largest": ratios[-1],
            }
        )
    return Table("Para-Former's branches, inference: one batched computation beside a loop, by turns", rows)


def depth(quick: bool, progress: Progress) -> Table:
    """Seconds of every reading over those of the serial network."""
    rows: list[dict[str, Cell]] = []
    for number in DEPTHS[:1] if quick else DEPTHS:
        for width, batch in ((48, 1),) if quick else ((48, 1), (192, 8)):
            progress(f"depth: {number} layers, width {width}, batch {batch}")
            seconds = seconds_of(width, batch, number, "cpu", 2 if quick else 7 if number <= 64 else 3)
            errors, exponent = sweep_errors(width, number, "cpu")
            by_name = {swept(k): error for k, error in errors.items()}
            for name in seconds["inference"]:
                row: dict[str, Cell] = {"layers": number, "width": width, "batch": batch, "network": name}
                for kind, times in seconds.items():
                    row[f"{kind} ms"] = 1e3 * statistics.median(times[name])
                    ratios = [a / b for a, b in zip(times[name], times["serial"], strict=True)]
                    row[f"{kind} ÷ serial"] = statistics.median(ratios)
                rows.append({**row, "relative error": by_name.get(name), "Lyapunov exponent": exponent})
    notes = [
        "transformer blocks on 17 tokens; the relative error is that of the sweeps to the serial network with the same "
        "weights, untrained; Para-Former and implicit networks are others. Exponent: of the depth, a layer, "
        "by power iteration."
    ]
    return Table("Time against depth, medians by turns", rows, notes)
