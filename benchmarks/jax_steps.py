"""The peers in JAX under jit: whole solves of one cheap map, of a fixed number of steps."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .peers import installed

Jitted = Callable[[], tuple[Any, Any]]
"""() → the last iterate and the number of steps, both computed."""
JAXOPT: dict[str, tuple[str, dict[str, int]]] = {
    "Picard": ("FixedPointIteration", {}),
    "Anderson": ("AndersonAcceleration", {"history_size": 6}),
}
"""Name of a solver in the table → jaxopt's name for it, and its options."""


def jax_device(device: torch.device) -> Any | None:
    """JAX's own device of this kind; None if JAX is not installed, or does not see one."""
    jax = installed("jax")
    if jax is None:
        return None
    try:
        return jax.devices("gpu" if device.type == "cuda" else "cpu")[0]
    except RuntimeError:
        return None


def left_out(device: torch.device) -> list[str]:
    """One line if JAX is installed and does not see the device."""
    if installed("jax") is None or jax_device(device) is not None:
        return []
    return ["JAX's rows are left out: the JAX that is installed does not see the GPU, see pip install 'jax[cuda12]'"]


def jitted_solves(solver: str, scale: Tensor, x: Tensor, steps: int) -> dict[str, Jitted]:
    """Peer → whole solve of `z = scale z + x` from 0, which does not stop before the last step."""
    device, found = jax_device(x.device), {}
    if device is None:
        return {}
    if solver in JAXOPT and installed("jaxopt"):
        found["jaxopt, jit"] = _ready(partial(_jaxopt, solver, steps), device, scale, x)
    if solver == "Picard" and installed("optimistix"):
        found["optimistix, jit"] = _ready(partial(_optimistix, steps), device, scale, x)
    return found


def _ready(solve: Callable[[Any, Any, Any], tuple[Any, Any]], device: Any, scale: Tensor, x: Tensor) -> Jitted:
    """The solve compiled for arrays on the device; they are arguments, since constants would be folded."""
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", False)  # which other measurements in the same process turn on
    arrays = [jax.device_put(tensor.cpu().numpy(), device) for tensor in (torch.zeros_like(x), scale, x)]
    compiled = jax.jit(solve)
    return lambda: jax.block_until_ready(compiled(*arrays))


def _map(z: Any, parts: tuple[Any, Any]) -> Any:
    scale, x = parts
    return z * scale + x


def _jaxopt(solver: str, steps: int, z0: Any, scale: Any, x: Any) -> tuple[Any, Any]:
    name, options = JAXOPT[solver]
    make = getattr(importlib.import_module("jaxopt"), name)
    # a loop on the device; unrolled, as differentiation would need it, it is slower
    found = make(_map, maxiter=steps, tol=0.0, implicit_diff=False, unroll=False, **options).run(z0, (scale, x))
    return found.params, found.state.iter_num


def _optimistix(steps: int, z0: Any, scale: Any, x: Any) -> tuple[Any, Any]:
    optimistix = importlib.import_module("optimistix")
    solver = optimistix.FixedPointIteration(rtol=1e-14, atol=0.0)
    found = optimistix.fixed_point(_map, solver, z0, (scale, x), max_steps=steps, throw=False)
    return found.value, found.stats["num_steps"]
