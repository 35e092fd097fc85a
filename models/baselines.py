"""Established networks to compare with, from torchvision, with a first layer that suits small images.

torchvision is imported where a baseline is built: `pip install 'implicit-networks[vision]'`.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn


def resnet(channels: int, classes: int, *, depths: tuple[int, int, int, int] = (2, 2, 2, 2)) -> nn.Module:
    """ResNet of basic blocks (He et al. 2016), ResNet-18 by default; 3×3 stem without pooling, as usual for CIFAR."""
    models = _torchvision("resnet")
    network: nn.Module = models.ResNet(models.BasicBlock, list(depths), num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def densenet(
    channels: int, classes: int, *, growth: int = 12, depths: tuple[int, ...] = (16, 16, 16), width: int = 24
) -> nn.Module:
    """DenseNet-BC (Huang et al. 2017) with `growth` new channels a layer; 3×3 stem without pooling."""
    network: nn.Module = _torchvision("densenet").DenseNet(growth, depths, width, num_classes=classes)
    features: Any = network.features
    features.conv0 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    features.pool0 = nn.Identity()
    return network


def convnext(
    channels: int,
    classes: int,
    *,
    widths: tuple[int, ...] = (96, 192, 384, 768),
    depths: tuple[int, ...] = (3, 3, 9, 3),
    patch: int = 4,
) -> nn.Module:
    """ConvNeXt (Liu et al. 2022), the tiny one by default; a stem of `patch`×`patch` patches."""
    models = _torchvision("convnext")
    following = (*widths[1:], None)
    settings = [models.CNBlockConfig(*stage) for stage in zip(widths, following, depths)]
    network: nn.Module = models.ConvNeXt(settings, num_classes=classes)
    features: Any = network.features
    features[0][0] = nn.Conv2d(channels, widths[0], patch, stride=patch)
    return network


def vit(
    channels: int,
    classes: int,
    *,
    image_size: int,
    patch_size: int,
    width: int = 192,
    heads: int = 3,
    hidden: int = 768,
    depth: int = 12,
) -> nn.Module:
    """ViT (Dosovitskiy et al. 2021), the tiny one by default."""
    models = _torchvision("vision_transformer")
    network: nn.Module = models.VisionTransformer(
        image_size, patch_size, depth, heads, width, hidden, num_classes=classes
    )
    network.conv_proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)
    return network


def _torchvision(module: str) -> Any:
    try:
        return importlib.import_module(f"torchvision.models.{module}")
    except ImportError as error:
        raise ImportError(
            f"this baseline needs torchvision ({error}): pip install 'implicit-networks[vision]'"
        ) from error
    except RuntimeError as error:  # operators that another build of torch lacks
        raise ImportError(
            f"torchvision does not fit the installed torch ({error}): install both in one step from one index, "
            "pip install --upgrade torch torchvision"
        ) from error
