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
    """For each cell, the cells whose digits must differ from its own."""
    width = side // 2
    places = [(row, column, row // 2 * 2 + column // width) for row in range(side) for column in range(side)]
    return [
        [other for other, its in enumerate(places) if other != cell and any(a == b for a, b in zip(mine, its))]
        for cell, mine in enumerate(places)
    ]


def solutions(cells: list[int], side: int) -> Iterator[list[int]]:
    """All ways to fill the empty cells, by search from the cell with the fewest candidates; changes `cells`."""
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
    """Whether a puzzle has exactly one solution; if its clues contradict each other, no search is needed."""
    peers = _peers(side)
    if any(digit and digit in [cells[peer] for peer in peers[cell]] for cell, digit in enumerate(cells)):
        return False
    found = solutions(cells.copy(), side)
    return next(found, None) is not None and next(found, None) is None


def dug(solution: list[int], side: int, clues: int, draw: np.random.Generator) -> list[int]:
    """A puzzle with that solution alone and `clues` clues, or as few as the drawn order allows."""
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
    """4 × 4 cells with 5 clues, five puzzles of each of the 288 grids, which are split 208 : 24 : 56."""
    draw, repeats = np.random.default_rng(0), 5
    grids = list(solutions([0] * 16, 4))
    order = [grids[number] for number in draw.permutation(len(grids)).tolist()]
    pairs = np.array([(dug(grid, 4, 5, draw), grid) for grid in order for _ in range(repeats)])
    split = "no grid occurs in two parts, but all 288 are symmetric forms of two grids"
    return _task("sudoku", pairs.reshape(-1, 2, 4, 4), 208 * repeats, 24 * repeats, split)


def sudoku6() -> Task:
    """6 × 6 cells with 12 clues, 128 symmetric forms of each of 64 puzzles, which are split 46 : 6 : 12."""
    draw, bases, repeats = np.random.default_rng(0), 64, 128
    start = np.array(next(solutions([0] * 36, 6))).reshape(6, 6)
    pairs: dict[bytes, Grids] = {}
    for number in range(1, bases + 1):
        some = np.where(draw.random((6, 6)) < 0.25, moved(start, draw), 0).ravel().tolist()
        solution = next(solutions(some, 6))  # a random solution: one that completes a quarter of another
        base = np.array([dug(solution, 6, 12, draw), solution]).reshape(2, 6, 6)
        while len(pairs) < number * repeats:
            pair = moved(base, draw)
            pairs.setdefault(pair[1].tobytes(), pair)
    split = "symmetric forms of 46 puzzles to train on, of 6 and 12 others in the other parts; no grid occurs twice"
    return _task("sudoku6", np.stack(list(pairs.values())), 46 * repeats, 6 * repeats, split)


def _task(name: str, pairs: Grids, train: int, validation: int, split: str) -> Task:
    """The task of (rows, 2, side, side) puzzles and their grids; the first `train` train, the next validate."""
    puzzles, answers = pairs[:, 0], pairs[:, 1]
    side, rest = puzzles.shape[-1], train + validation
    return Task(
        name,
        data(puzzles[:train], answers[:train]),
        data(puzzles[rest:], answers[rest:]),
        validation=data(puzzles[train:rest], answers[train:rest]),
        goal=ExactMatch(side),
        description=f"Sudoku puzzles of {side} × {side} cells, each with one solution; {split}",
        epochs=16,
        batch=32,
        learning_rate=3e-3,
        measured=256,
    )
