"""Sudoku puzzles of 4 × 4 and 6 × 6 cells, generated: boxes of two rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import one_hot
from torch.utils.data import TensorDataset

from .goals import ExactMatch
from .task import Task

Grids = NDArray[np.int64]
"""(…, side, side) of digits from 1 on; 0: an empty cell."""


@cache
def _peers(side: int) -> list[list[int]]:
    """Of each cell, those whose digits must be others."""
    width = side // 2
    places = [(row, column, row // 2 * 2 + column // width) for row in range(side) for column in range(side)]
    return [
        [other for other, its in enumerate(places) if other != cell and any(a == b for a, b in zip(mine, its))]
        for cell, mine in enumerate(places)
    ]


def solutions(cells: list[int], side: int) -> Iterator[list[int]]:
    """All that fill the empty cells, by search: the cell with the fewest candidates first. It writes into `cells`."""
    peers, least, candidates = _peers(side), -1, set(range(side + 1))
    for cell, digit in enumerate(cells):
        if digit == 0:
            left = set(range(1, side + 1)).difference([cells[peer] for peer in peers[cell]])
            if len(left) < len(candidates):
                least, candidates = cell, left
                if len(left) < 2:
                    break
    if least < 0:
        yield cells.copy()
        return
    for digit in sorted(candidates):
        cells[least] = digit
        yield from solutions(cells, side)
    cells[least] = 0


def is_unique(cells: list[int], side: int) -> bool:
    """Whether a puzzle has exactly one solution."""
    found = solutions(cells.copy(), side)
    return next(found, None) is not None and next(found, None) is None


def dug(solution: list[int], side: int, clues: int, draw: np.random.Generator) -> list[int]:
    """A puzzle with that solution alone, of so many clues, or of as few as the order drawn allows."""
    cells = solution.copy()
    for cell in draw.permutation(len(cells)).tolist():
        if len(cells) - cells.count(0) <= clues:
            break
        digit, cells[cell] = cells[cell], 0
        if not is_unique(cells, side):
            cells[cell] = digit
    return cells


def moved(grids: Grids, draw: np.random.Generator) -> Grids:
    """Grids under one symmetry: other digits, and rows and columns in an order that keeps boxes together."""
    side = grids.shape[-1]
    digits = np.concatenate(([0], 1 + draw.permutation(side)))
    rows, columns = (
        np.concatenate([width * block + draw.permutation(width) for block in draw.permutation(side // width)])
        for width in (2, side // 2)
    )
    return digits[grids][..., rows, :][..., columns]


def data(puzzles: Grids, answers: Grids) -> TensorDataset:
    """(rows, cells, side + 1) one-hot clues, the first for an empty cell, and (rows, cells) digits from 0 on."""
    side = puzzles.shape[-1]
    clues = one_hot(torch.from_numpy(puzzles).flatten(1), side + 1).float()
    return TensorDataset(clues, torch.from_numpy(answers).flatten(1) - 1)


def sudoku() -> Task:
    """4 × 4 cells with 5 clues, ten puzzles of each of the 288 grids, a fifth of which is kept for testing."""
    draw, repeats = np.random.default_rng(0), 10
    grids = list(solutions([0] * 16, 4))
    chosen = [grids[number] for number in draw.permutation(len(grids)).tolist() for _ in range(repeats)]
    puzzles, answers = (
        np.array(rows).reshape(-1, 4, 4) for rows in ([dug(grid, 4, 5, draw) for grid in chosen], chosen)
    )
    train = len(grids) * 4 // 5 * repeats
    return _task("sudoku", puzzles, answers, train, "no grid of the test part is one of the training part")


def sudoku6() -> Task:
    """6 × 6 cells with 12 clues, 128 symmetric forms of each of 64 puzzles, a fifth of which is kept for testing."""
    draw, bases, repeats = np.random.default_rng(0), 64, 128
    start, pairs = np.array(next(solutions([0] * 36, 6))).reshape(6, 6), []
    for _ in range(bases):
        some = np.where(draw.random((6, 6)) < 0.25, moved(start, draw), 0).ravel().tolist()
        solution = next(solutions(some, 6))  # a random one: what completes a quarter of another
        base = np.array([dug(solution, 6, 12, draw), solution]).reshape(2, 6, 6)
        pairs += [moved(base, draw) for _ in range(repeats)]
    puzzles, answers = np.stack(pairs, axis=1)
    train = bases * 4 // 5 * repeats
    known = {answer.tobytes() for answer in answers[:train]}
    kept = [place < train or answer.tobytes() not in known for place, answer in enumerate(answers)]
    words = "symmetric forms of 51 for training, of 13 others for testing, and no grid is in both parts"
    return _task("sudoku6", puzzles[kept], answers[kept], train, words)


def _task(name: str, puzzles: Grids, answers: Grids, train: int, split: str) -> Task:
    side = puzzles.shape[-1]
    return Task(
        name,
        data(puzzles[:train], answers[:train]),
        data(puzzles[train:], answers[train:]),
        goal=ExactMatch(side),
        description=f"Sudoku puzzles of {side} × {side} cells, each with one solution; {split}",
        epochs=20,
        learning_rate=3e-3,
        measured=256,
    )
