"""What a module's `to` does not move."""

import torch
from torch import nn

OWN = set(vars(nn.Module()))


def left_behind(network):
    """The paths of tensors and modules in plain attributes and containers of a network's modules."""
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if key not in OWN:
                yield from held(value, f"{name}.{key}")


def held(value, path):
    """Those in a value."""
    if isinstance(value, (torch.Tensor, nn.Module)):
        yield path
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from held(part, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple, set)):
        for number, part in enumerate(value):
            yield from held(part, f"{path}[{number}]")
