"""Seconds on a synchronised device, and what the device takes at best."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch

from experiments.measuring.timing import Runs, by_turns

from .peers import versions
from .report import Cell

WARM = 4
"""Untimed calls before a measurement: the first ones set up libraries, compile and record."""


def seconds(runs: Runs, device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, in turn, after some untimed calls; the device is synchronised before and after each."""
    waited: Runs = {name: partial(_waited, run, device) for name, run in runs.items()}
    for run in waited.values():
        for _ in range(WARM):
            run()
    return by_turns(waited, repeats, warm=False)


def spread(found: list[float], unit: float) -> dict[str, Cell]:
    """Median, least and largest, in this unit of seconds."""
    return {"median": statistics.median(found) / unit, "least": min(found) / unit, "largest": max(found) / unit}


def graphed(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The run captured as a CUDA graph; on a processor, the run itself."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # JAX has threads of its own
        run()
    return graph.replay


def copy_bandwidth(device: torch.device, entries: int, repeats: int) -> float:
    """Bytes per second, read and written, of a copy of `entries` numbers in float32."""
    source, target = torch.zeros(entries, device=device), torch.empty(entries, device=device)
    found = seconds({"copy": lambda: target.copy_(source)}, device, repeats)["copy"]
    return 2 * 4 * entries / statistics.median(found)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch or JAX says so."""
    return any(words in str(error) for words in ("out of memory", "RESOURCE_EXHAUSTED"))


def described(device: torch.device, peers: tuple[str, ...]) -> str:
    """The card, and the versions of what ran on it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a processor"
    return ", ".join((name, *(f"{package} {version}" for package, version in versions(peers).items())))


def _waited(run: Callable[[], object], device: torch.device) -> None:
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
