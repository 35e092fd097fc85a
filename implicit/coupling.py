"""Whether the rows of a batch depend on each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from solvers.problem import Problem, prepare
from solvers.state import tree_leaves

from .draws import normal

ALIKE = 4
"""Rounding units by which an image may change with other rows, since libraries may sum in another order."""
REMEDY = (
    "Each problem must be one row: pass a graph, whose nodes are not rows, as x[None] (and z0[None]). Use LayerNorm "
    "or GroupNorm in place of batch statistics, and restrict attention to each row"
)


def coupling(problem: Problem, flat: Tensor) -> Tensor:
    """(batch,) relative change of each row's image when other rows are moved; 0: it depends on none of them.

    Takes 2 log₂(batch) evaluations of the whole batch. Each moves every row whose index has a given binary digit, so
    that any two rows are separated. A map that is not deterministic counts as 0.
    """
    found = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
    index = torch.arange(len(flat), device=flat.device)
    with torch.no_grad():
        image = problem(flat).double()
        if not torch.equal(problem(flat).double().nan_to_num(), image.nan_to_num()):
            return found
        length = flat.double().square().mean(dim=1, keepdim=True).sqrt().to(flat)
        moved = flat + torch.where(length > 0, length, 1) * normal(flat.shape, flat)
        scale = torch.linalg.vector_norm(image, dim=1) + torch.linalg.vector_norm(flat.double(), dim=1)
        for digit in range((len(flat) - 1).bit_length()):
            for side in (0, 1):
                moves = (index >> digit) & 1 == side
                others = problem(torch.where(moves[:, None], moved, flat)).double()
                change = torch.linalg.vector_norm((others - image)[~moves], dim=1)
                relative = torch.where(change > 0, change / scale[~moves], 0).nan_to_num(torch.inf)
                found[~moves] = torch.maximum(found[~moves], relative)
    found[found <= ALIKE * problem.rounding] = 0
    return torch.where(image.isfinite().all(dim=1), found, 0)


def refuse_coupled(name: str, problem: Problem, flat: Tensor) -> None:
    """`ValueError` if rows depend on each other: then no row has a Jacobian of its own."""
    found = coupling(problem, flat)
    if bool(found.any()):
        raise ValueError(
            f"{name}: the rows of f depend on each other (the image of row {int(found.argmax())} changes by "
            f"{found.max():.1e}, relative, when other rows do), so no row has a Jacobian of its own. {REMEDY}"
        )


def as_one_row(problem: Problem) -> Problem:
    """The same with the whole batch as one row, (1, batch · dim)."""
    layout = problem.layout

    def f(z: Tensor) -> Tensor:
        return problem(z.view(layout.batch, -1)).reshape(1, -1).to(z.dtype)

    return prepare(f, torch.empty(1, layout.batch * sum(layout.sizes), dtype=layout.dtype, device=layout.device), ())


def causes(cell: nn.Module, inputs: tuple[Any, ...], batch: int) -> Iterator[str]:
    """What in a cell may couple its rows, in words."""
    for name, module in cell.named_modules():
        title = f"{name or 'the cell itself'} ({type(module).__name__})"
        if uses_batch_statistics(module):
            yield f"{title} uses batch statistics"
        elif getattr(module, "batch_first", True) is False:
            yield f"{title} takes dim 0 as the sequence: set batch_first=True"
        kept = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False)) | vars(module)
        yield from (f"{name + '.' if name else ''}{key} {why}" for key, why in _square(kept, batch))
    yield from (f"{key} {why}" for key, why in _square({"an input": inputs}, batch))


def uses_batch_statistics(module: nn.Module) -> bool:
    """Whether it is a batch normalisation by the statistics of the batch itself."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


def _square(values: dict[str, Any], batch: int) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        for leaf in tree_leaves(value) if isinstance(value, (tuple, list)) else [value]:
            if isinstance(leaf, Tensor) and leaf.shape == (batch, batch):
                yield name, f"is ({batch}, {batch}), the batch size in both dims, like the adjacency matrix of a graph"
