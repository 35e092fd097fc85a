import pytest

from implicit.diagnostics import host_time
from solvers.loops import tape
from tests.replays import Replayed


@pytest.fixture(autouse=True)
def _everywhere(default_device):
    """Every test of this folder runs on every device at hand."""


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch):
    """On a GPU every small layer waits for the host: findings do not depend on times where these are not tested."""
    monkeypatch.setattr(host_time, "step_times", lambda look: None)


@pytest.fixture(params=["called", "replayed"])
def recording(request, monkeypatch):
    """Recordings are called, and replayed as a CUDA graph would be."""
    if request.param == "replayed":
        monkeypatch.setattr(tape, "Called", Replayed)
