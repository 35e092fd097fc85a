"""A penalty that keeps solves short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers import State
from solvers.problem import prepare

from ..calls import detached
from ..compiled import twice_differentiable
from ..graph import anchored, refuse_hidden
from ..parametrized import one_weight


def jacobian_penalty(f: Callable[..., State], z: State, args: tuple[Any, ...] = (), *, samples: int = 1) -> Tensor:
    """`‖J‖_F² / dim` averaged over the rows, `J = ∂f/∂z`: a scalar to add to a loss, so that solves stay short.

    An unbiased estimate, `‖vᵀJ‖² / dim` with independent random signs v, costs one vector–Jacobian product per sample.
    Gradients reach the parameters and arguments of f, and z where it has a graph. They need second derivatives, so f is
    evaluated without compiled code and fused kernels of scaled dot-product attention, which have none.
    Source: Hutchinson (1990); Bai, Koltun, Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", ICML
    2021.

        z = layer(x)
        loss = criterion(z, y) + 0.1 * jacobian_penalty(layer.cell, z, (x,))

    Args:
        f, args: as in `solvers.solve`.
        z: where to differentiate, usually the equilibrium.
        samples: products to average over, at least 1.
    """
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"jacobian_penalty: samples={samples!r} must be an integer of at least 1")
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return jacobian_penalty(f, *detached((z, args)), samples=samples)
    problem = prepare(f, z, args)
    tracked = torch.is_grad_enabled()
    with torch.enable_grad(), one_weight(f), twice_differentiable():
        flat = problem.layout.flatten(z)
        # differentiate at z only, not through its history
        point = flat.view_as(flat) if flat.requires_grad and tracked else anchored(flat)
        image = problem(point)
        refuse_hidden("jacobian_penalty", problem, flat, image)
        total = image.new_zeros(())
        for _ in range(samples if image.requires_grad else 0):
            signs = torch.empty_like(image).bernoulli_().mul_(2).sub_(1)
            (product,) = torch.autograd.grad(image, point, signs, create_graph=True, allow_unused=True)
            if product is not None:
                total = total + product.square().sum()
    penalty = total / (samples * max(image.numel(), 1))
    return penalty if tracked else penalty.detach()
