"""Start a command as several processes of one machine, as torchrun does, and end them together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from ..errors import InputError

PATIENCE = 15.0
"""Seconds that processes have to end by themselves before they are killed."""
_ACROSS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


def launch(arguments: Sequence[str], devices: int, nodes: int) -> int:
    """Run `implicit ARGUMENTS` in `devices` processes and return the exit code of the first that failed, or 0."""
    common = _meeting_place(nodes)
    node = int(common["NODE_RANK"])
    command = [sys.executable, "-m", "experiments", *arguments]
    # Ctrl-C reaches all processes of a terminal: only this one handles it, and passes it on as SIGTERM
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes = []
    try:
        for local in range(devices):
            own = {"RANK": node * devices + local, "LOCAL_RANK": local, "GROUP_RANK": node}
            own |= {"WORLD_SIZE": devices * nodes, "LOCAL_WORLD_SIZE": devices}
            environment = {**common, **{key: str(value) for key, value in own.items()}}
            processes.append(subprocess.Popen(command, env={**os.environ, **environment}))
    finally:
        signal.signal(signal.SIGINT, answer)
    try:
        return _watched(processes)
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end(processes)


def _meeting_place(nodes: int) -> dict[str, str]:
    """The environment variables that all processes share."""
    missing = [name for name in _ACROSS if name not in os.environ]
    if nodes > 1 and missing:
        raise InputError(
            f"--nodes {nodes}: {', '.join(missing)} must be set: start the command on each node with the address and "
            f"a free port of the first, and NODE_RANK 0 … {nodes - 1}; or use torchrun"
        )
    # the processes share the cores; and torch would warn in each of them that its search for parameters without a
    # gradient is unnecessary, which holds for some networks only
    usual = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    common = {name: os.environ.get(name, value) for name, value in usual.items()}
    if nodes > 1:
        return {**common, **{name: os.environ[name] for name in _ACROSS}}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {**common, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}


def _watched(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes, or for the first to fail; returns the exit code."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if failed:
            first = min(failed)  # a signal, if any: the others fail because they miss the process that it ended
            if first > 0:
                return first
            name = signal.Signals(-first).name
            print(f"implicit: process {codes.index(first)} of {len(codes)} was ended by {name}", file=sys.stderr)
            return 128 - first
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask the processes that still run to end, then kill those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
