import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # tests are small and run side by side: threads of PyTorch's own would only wait for each other
    torch.set_num_threads(1)
