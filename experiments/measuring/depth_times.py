"""Seconds against depth, measured: layers one after the other, side by side, and swept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models import OptDNN, Parallel, lyapunov_exponent
from models.blocks import attention
from models.branches import Branches
from models.methods import METHODS

from .timing import Runs, by_turns

TOKENS, HEADS = 17, 3
SWEEPS = (1, 2, 4)
REPEATS = 7
Seconds = dict[str, list[float]]


def swept(sweeps: int) -> str:
    """The name of a network evaluated in `sweeps` sweeps."""
    return f"{sweeps} sweep{'s' * (sweeps > 1)}"


def networks(width: int, depth: int) -> dict[str, nn.Module]:
    """Transformer blocks in every reading: `depth` layers on tokens (batch, tokens, width)."""
    blocks = attention(width, 4 * width, heads=HEADS)
    serial = OptDNN("gd", [blocks.free() for _ in range(depth)])
    proximal = OptDNN("pgd", [METHODS["pgd"].layer(blocks) for _ in range(depth)], alpha=0.0)
    found: dict[str, nn.Module] = {
        "serial": serial,
        "implicit (pgd)": proximal,
        "Para-Former, batched": Branches(depth, depth=1, width=width, heads=HEADS, hidden=4 * width),
    }
    for sweeps in SWEEPS:
        if sweeps <= depth:
            found[swept(sweeps)] = Parallel(serial, sweeps)
    return found


def seconds_of(width: int, batch: int, depth: int, device: str, repeats: int = REPEATS) -> dict[str, Seconds]:
    """Inference and training step, timed in turn: network → seconds of each repeat."""
    torch.manual_seed(0)
    x = torch.randn(batch, TOKENS, width, device=device)
    found = {name: network.to(device) for name, network in networks(width, depth).items()}

    def finished(value: Tensor) -> None:
        if value.is_cuda:
            torch.cuda.synchronize()

    def infer(network: nn.Module) -> None:
        with torch.inference_mode():
            finished(network(x))

    def learn(network: nn.Module) -> None:
        loss = network(x).square().mean()
        loss.backward()
        finished(loss)

    def timed(run: Callable[[nn.Module], None], training: bool) -> Seconds:
        for network in found.values():
            run(network.train(training))  # the first run allocates memory and moves weights
        runs: Runs = {name: partial(run, network) for name, network in found.items()}
        return by_turns(runs, repeats, warm=False)

    return {"inference": timed(infer, False), "training step": timed(learn, True)}


def sweep_errors(width: int, depth: int, device: str) -> tuple[dict[int, float], float]:
    """Relative error of the output for each number of sweeps, and the largest Lyapunov exponent per layer."""
    torch.manual_seed(0)
    net = networks(width, depth)["serial"].to(device).eval()
    assert isinstance(net, OptDNN)
    x = torch.randn(4, TOKENS, width, device=device)
    with torch.no_grad():
        exact = net(x)
        errors = {
            sweeps: float((Parallel(net, sweeps)(x) - exact).norm() / exact.norm())
            for sweeps in (*SWEEPS, depth)
            if sweeps <= depth
        }
    return errors, float(lyapunov_exponent(net, x).max())


def measured(width: int, batch: int, depth: int, device: str, repeats: int = REPEATS) -> dict[str, Any]:
    """The record of one width, batch and depth."""
    errors, exponent = sweep_errors(width, depth, device)
    seconds = seconds_of(width, batch, depth, device, repeats)
    sizes = {"width": width, "batch": batch, "depth": depth}
    return {**sizes, "seconds": seconds, "errors": errors, "exponent": exponent}
