"""What a solve holds: a bounded history, allocated as it fills."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from solvers import Anderson, Broyden, solve

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

torch.set_num_threads(1)
z, x = torch.zeros(32, 256, 32, 32), torch.randn(1, 256, 1, 1)
slow = torch.linspace(0.5, 0.99, 256)[None, :, None, None]
state = z.numel() * 4
solve(lambda z: z * slow + x, z[:1], solver={solver}, rtol=0.0, atol=0.0, max_steps=3)
before = peak()
solve(lambda z: z * slow + x, z, solver={solver}, rtol=0.0, atol=0.0, max_steps={steps})
print((peak() - before) / state)
"""


@pytest.mark.parametrize(
    ("solver", "steps", "states"),
    [
        ("Broyden()", 14, 19),  # full at 12: 0.6 GiB are 19.2 states of 32 MiB
        ("Broyden()", 4, 10),
        ("Anderson(memory=40)", 4, 15),
    ],
)
def test_history_is_bounded_and_allocated_as_it_fills(solver, steps, states):
    script = SCRIPT.format(solver=solver, steps=steps)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(result.stdout) <= states
