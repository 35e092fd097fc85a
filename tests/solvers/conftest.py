import pytest


@pytest.fixture(autouse=True)
def _everywhere(default_device):
    """Every test of this folder runs on every device at hand."""
