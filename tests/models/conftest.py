import pytest
import torch


@pytest.fixture(autouse=True)
def _everywhere(default_device):
    """Every test of this folder runs on every device at hand."""


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
