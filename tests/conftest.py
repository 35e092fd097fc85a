import gc

import pytest
import torch
from torch.overrides import TorchFunctionMode

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@pytest.fixture(params=DEVICES)
def device(request):
    """Every device at hand."""
    return request.param


class DrawnOnTheProcessor(TorchFunctionMode):
    """Random numbers are the same on every device, and so is what a test finds with them."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if getattr(func, "__module__", "") == "torch.nn.init":  # within it this mode is off
            tensor = kwargs.pop("tensor", None)
            tensor, args = (args[0], args[1:]) if tensor is None else (tensor, ())
            with torch.no_grad():
                return tensor.copy_(func(torch.empty_like(tensor, device="cpu", requires_grad=False), *args, **kwargs))
        if func in (torch.rand, torch.randn, torch.randint, torch.randperm) and kwargs.get("device") is None:
            wanted = kwargs.pop("requires_grad", False)
            return func(*args, **kwargs, device="cpu").to(self.device).requires_grad_(wanted)
        if func in (torch.randn_like, torch.rand_like) and args[0].device.type == self.device:
            return func(args[0].cpu(), *args[1:], **kwargs).to(args[0].device)
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_) and args[0].device.type == self.device:
            drawn = func(torch.empty_like(args[0], device="cpu", requires_grad=False), *args[1:], **kwargs)
            return args[0].copy_(drawn)
        return func(*args, **kwargs)


@pytest.fixture
def default_device(device):
    """The tensors and modules that a test makes are on every device at hand in turn."""
    if device == "cpu":  # as it is
        yield device
        return
    torch.set_default_device(device)
    with DrawnOnTheProcessor(device):
        yield device
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # tests are small and run side by side: threads of PyTorch's own would only wait for each other
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _collector_leaves_what_was_there_before():
    # millions of objects of libraries and of earlier tests would be looked through at every collection
    gc.collect()
    gc.freeze()
