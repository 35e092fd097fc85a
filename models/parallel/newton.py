"""Newton's method over a chain of steps: the Jacobians that a sweep follows, and the recursion that they define."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from solvers.checks import check_positive_integer

CHUNK = 16
"""Rows of the Jacobians that are computed at once where only the diagonal is kept."""


@dataclass(frozen=True)
class Newton:
    """Sweeps that follow the Jacobians `J_k` of the steps: `x_{k+1} ← f_k(x̄_k) + (1 − damping) J_k (x_k − x̄_k)`.

    A sweep maps a guess x̄ of the whole chain to the next, by a scan of ⌈log₂ L⌉ rounds. A few sweeps suffice if the
    steps contract on average, and as many as there are steps suffice in any case. Source: Lim, Zhu, Selfridge, Kasim,
    "Parallelizing non-linear sequential models over the sequence length" (DEER), ICLR 2024; Gonzalez, Warrington,
    Smith, Linderman, "Towards scalable and stable parallelization of nonlinear RNNs" (quasi-DEER, ELK), NeurIPS 2024.
    """

    diagonal: bool = False
    """Follow the Jacobians' diagonals alone: more sweeps, each with memory and a scan linear in the width. Forming them
    takes as many pull-backs of the cell as the state is wide, or `probes`."""
    damping: float = 0.0
    """In [0, 1]: the share of the Jacobians that is left out. If a chain expands, some damping keeps the sweeps from
    diverging; 1 is plain iteration."""
    probes: int | None = None
    """With `diagonal`: how many random signs v estimate it, as the mean of `v ⊙ Jᵀv`. One is exact for cells that do
    not mix the entries of the state; the more they mix, the worse the estimate, and the more sweeps. None: exact."""

    def __post_init__(self) -> None:
        if not isinstance(self.diagonal, bool):
            raise TypeError(f"Newton: diagonal={self.diagonal!r} must be True or False")
        if self.probes is not None:
            check_positive_integer(self, "probes")
            if not self.diagonal:
                raise ValueError(f"Newton: probes={self.probes} estimates diagonals: pass diagonal=True with it")
        if not isinstance(self.damping, Real) or isinstance(self.damping, bool) or not 0 <= self.damping <= 1:
            raise ValueError(f"Newton: damping={self.damping!r} must be a number from 0 to 1")

    @property
    def follows_diagonals(self) -> bool:
        """Whether Jacobians are vectors rather than matrices."""
        return self.diagonal or self.damping == 1

    def jacobians(self, f: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
        """`f(points)`, and its Jacobians as a sweep follows them: (…, width, width), or the diagonals, (…, width).

        Args:
            f: keeps the shape; each vector along the last dim depends only on the one at the same place.
            points: (…, width).
        """
        if self.damping == 1:
            return f(points), torch.zeros_like(points)
        values, pulled = _pullback(f, points)
        width = points.shape[-1]
        if self.probes is not None:
            signs = _signs(self.probes, width, points)
            rows = signs.view(-1, *[1] * (points.ndim - 1), width) * pulled(signs)
            return values, (1 - self.damping) * rows.mean(dim=0)
        basis = torch.eye(width, dtype=points.dtype, device=points.device)
        if not self.diagonal:
            return values, (1 - self.damping) * pulled(basis).movedim(0, -2)
        found = []
        for chunk in torch.arange(width, device=points.device).split(CHUNK):
            rows = pulled(basis[chunk])
            places = chunk.view(-1, *[1] * points.ndim).expand(*rows.shape[:-1], 1)
            found.append(rows.gather(-1, places)[..., 0].movedim(0, -1))
        return values, (1 - self.damping) * torch.cat(found, dim=-1)


_NOT_DIFFERENTIATED = {
    "in-place operation": "writes into its buffers, as batch normalisation does in training, or into its input, as "
    "nn.ReLU(inplace=True) does: call eval() on the net, or let it write elsewhere",
    "Inference tensors cannot be saved": "holds tensors that were made in inference mode, as parametrized weights are "
    "within it: use torch.no_grad() in place of torch.inference_mode()",
    "saved tensor hooks": "meets hooks on saved tensors, its own or those around the call, as in a checkpoint or "
    "save_on_cpu: remove them, or pass newton=None",
}


@contextmanager
def explained(newton: Newton | None) -> Iterator[None]:
    """Explain the errors of transforms that `torch.func`, and therefore Newton's sweeps, cannot differentiate."""
    try:
        yield
    except RuntimeError as error:
        for sign, reason in _NOT_DIFFERENTIATED.items():
            if newton is not None and sign in str(error):
                raise TypeError(f"Newton's sweeps differentiate each transform, but one {reason}") from error
        raise


class _HooksRefused(TorchFunctionMode):
    """Refuses hooks on gradients, which `torch.func` calls for Jacobians, and not for the gradient of a loss."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.register_hook:
            raise TypeError(
                "Newton's sweeps differentiate each transform, but one puts a hook on a gradient within, which the "
                "gradient of a loss would not meet: let it do so elsewhere, or pass newton=None"
            )
        return func(*args, **(kwargs or {}))


def _signs(count: int, width: int, like: Tensor) -> Tensor:
    """(count, width) signs as good as random, the same at each call; made on the device, as a capture requires."""
    mixed = torch.arange(1, count * width + 1, device=like.device).view(count, width)
    for factor, shift in ((2654435761, 15), (2246822519, 13)):  # a hash of 32 bits
        mixed = (mixed * factor) & 0xFFFFFFFF
        mixed = mixed ^ (mixed >> shift)
    return (1 - 2 * (mixed & 1)).to(like.dtype)


def _pullback(f: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`f(points)`, and the map from (k, width) rows v to the products `Jᵀv` at all points, (k, …, width)."""
    tracked = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    try:
        with _HooksRefused() if tracked else nullcontext():
            values, pull = torch.func.vjp(f, points)  # type: ignore[misc]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if torch.is_grad_enabled():
            raise
        # the cell holds what torch.func does not follow, as a checkpoint: pull one row back after the other
        with torch.inference_mode(False), torch.enable_grad():
            leaves = (points.clone() if points.is_inference() else points.detach()).requires_grad_()
            image = f(leaves)
        return image.detach(), lambda rows: torch.stack([_pulled(image, leaves, row) for row in rows])
    return values, torch.vmap(lambda row: pull(row.expand(points.shape))[0])


def _pulled(image: Tensor, leaves: Tensor, row: Tensor) -> Tensor:
    with torch.inference_mode(False):
        rows = row.expand(image.shape)
        (found,) = torch.autograd.grad(image, leaves, rows, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaves) if found is None else found


def scan(
    matrices: Tensor,
    vectors: Tensor,
    start: Tensor,
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Tensor:
    """All of `x_{k+1} = M_k x_k + v_k`, in ⌈log₂ L⌉ rounds of batched products instead of L steps.

    Args:
        matrices: (L, …, n, n).
        vectors: (L, …, n, c).
        start: x_0, (…, n, c).
        product: of two matrices, and of a matrix and a vector; `torch.mul` for diagonals, shaped like the vectors.

    Returns:
        x_0 … x_L, (L + 1, …, n, c).
    """
    states = torch.cat(((product(matrices[0], start) + vectors[0])[None], vectors[1:]))
    shift = 1
    while shift < len(states):
        states = torch.cat((states[:shift], states[shift:] + product(matrices[shift:], states[:-shift])))
        matrices = torch.cat((matrices[:shift], product(matrices[shift:], matrices[:-shift])))
        shift *= 2
    return torch.cat((start.expand_as(states[0])[None], states))
