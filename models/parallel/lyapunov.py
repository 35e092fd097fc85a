"""How a network stretches a disturbance of its input over its depth."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from implicit import one_weight

from ..optdnn import OptDNN


def lyapunov_exponent(net: OptDNN, z0: Tensor, *inputs: Tensor, steps: int = 20) -> Tensor:
    """(batch,) largest Lyapunov exponent of the depth, `log ‖∂z_L/∂z_0‖₂ / L`, in nepers per layer.

    Below 0 the layers contract on average, and few sweeps of `parallel_evaluate` with `newton=` suffice; above 0 a
    disturbance of an early layer grows, and many are needed. Plain sweeps need some multiple of τL, τ being the
    Lipschitz constant of a layer's transform, whatever the exponent. The norm is approached from below, by power
    iteration on JᵀJ. Source: Gonzalez et al., "Predictability enables parallelization of nonlinear state space
    models", NeurIPS 2025.

    Args:
        net: the network, its rows independent of each other.
        z0: (batch, …).
        inputs: further inputs of the transforms.
        steps: of power iteration.
    """
    kernels = sdpa_kernel(SDPBackend.MATH)  # differentiable twice
    with torch.inference_mode(False), torch.enable_grad(), one_weight(net), kernels:
        z = z0.detach().clone().requires_grad_()
        output = net(z, *(each.clone() if each.is_inference() else each for each in inputs))
        weight = torch.zeros_like(output, requires_grad=True)
        (pulled,) = torch.autograd.grad(output, z, weight, create_graph=True)
        direction = torch.randn_like(z)
        norm = direction.new_zeros(len(z))
        for _ in range(steps):
            direction = _unit(direction)[0]
            (pushed,) = torch.autograd.grad(pulled, weight, direction, retain_graph=True)
            unit, norm = _unit(pushed)
            (direction,) = torch.autograd.grad(output, z, unit, retain_graph=True)
    return (norm.log() / len(net.transforms)).detach()


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return rows / norm.clamp(min=torch.finfo(rows.dtype).tiny).view(-1, *[1] * (rows.ndim - 1)), norm
