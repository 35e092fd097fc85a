"""Memory that a graph holds."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(network: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes of the storages, each counted once, that the loss's graph holds in training mode, without parameters."""
    known = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    sizes: dict[int, int] = {}
    kept = []  # a storage must stay alive for its address to identify it

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    network.train()
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss()
    finally:
        network.eval()
    return sum(sizes.values())
