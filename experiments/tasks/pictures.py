"""Tasks on pictures in a folder: MNIST, Fashion-MNIST, CIFAR and ImageNet, through torchvision."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset, default_collate

from ..errors import InputError, first_line
from ..names import where
from .goals import Classification
from .task import Source, Task

LABEL_SMOOTHING, MIXING, AVERAGING = 0.1, 0.8, 0.999
CIFAR_MEAN, CIFAR_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081
FASHION_MEAN, FASHION_DEVIATION = 0.2860, 0.3530
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Mixed:
    """Collates a batch and mixes pairs of its pictures and labels (mixup)."""

    classes: int
    alpha: float = MIXING

    def __call__(self, pairs: list[Any]) -> Any:
        """(batch, …) pictures and (batch, classes) shares of the classes, of sum 1."""
        from torchvision.transforms import v2

        return v2.MixUp(alpha=self.alpha, num_classes=self.classes)(*default_collate(pairs))


def mnist(source: Source) -> Task:
    """MNIST (LeCun et al. 1998), handwritten digits, not augmented, held in memory."""
    return _grey("MNIST", "mnist", MNIST_MEAN, MNIST_DEVIATION, source)


def fashion(source: Source) -> Task:
    """Fashion-MNIST (Xiao et al. 2017), clothes, likewise."""
    return _grey("FashionMNIST", "fashion", FASHION_MEAN, FASHION_DEVIATION, source)


def cifar10(source: Source) -> Task:
    """CIFAR-10 (Krizhevsky 2009), strongly augmented: crops, flips, RandAugment, mixup, label smoothing, averaging."""
    return _cifar("CIFAR10", 10, source)


def cifar100(source: Source) -> Task:
    """CIFAR-100, likewise."""
    return _cifar("CIFAR100", 100, source)


def imagenet(source: Source) -> Task:
    """Folders `train/CLASS/` and `val/CLASS/` of pictures, as ImageNet comes; the same augmentation at 224×224."""
    folder = _folder("imagenet", source)
    if source.download:
        raise InputError("the task imagenet cannot be downloaded: prepare --data DIR with train/CLASS and val/CLASS")
    torchvision, v2 = _torchvision()
    final = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_DEVIATION)]
    train = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.RandAugment(), *final])
    test = v2.Compose([v2.Resize(256), v2.CenterCrop(224), *final])
    try:
        parts = [
            torchvision.datasets.ImageFolder(str(folder / part), transform)
            for part, transform in (("train", train), ("val", test))
        ]
    except (OSError, RuntimeError) as error:
        raise InputError(f"--data {folder} holds no train/CLASS and val/CLASS pictures: {first_line(error)}") from error
    if parts[0].classes != parts[1].classes:
        raise InputError(f"--data {folder}: train and val have different classes")
    return _augmented("imagenet", "pictures in folders, 224×224", len(parts[0].classes), parts, epochs=300, sample=256)


def _grey(name: str, task: str, mean: float, deviation: float, source: Source) -> Task:
    def pairs(data: Any) -> TensorDataset:
        return TensorDataset((data.data[:, None] / 255 - mean) / deviation, data.targets)

    train, test = (pairs(part) for part in _parts(name, task, source, None, None))
    return Task(
        task,
        train,
        test,
        goal=Classification(10),
        description=f"{name}, 28×28 pixels, not augmented",
        epochs=20,
        batch=128,
        learning_rate=3e-3,
    )


def _cifar(name: str, classes: int, source: Source) -> Task:
    _, v2 = _torchvision()
    final = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(CIFAR_MEAN, CIFAR_DEVIATION)]
    train = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandAugment(), *final])
    parts = _parts(name, name.lower(), source, train, v2.Compose(final))
    # a solve in the wide form holds some 20 MiB per picture: more of them would not fit a usual card
    return _augmented(name.lower(), f"{name}, 32×32 pixels", classes, parts, epochs=200, sample=512)


def _parts(name: str, task: str, source: Source, train: Any, test: Any) -> list[Any]:
    """Both parts of torchvision's data set of that name, with these transforms."""
    folder = _folder(task, source)
    existed = folder.exists()
    make = getattr(_torchvision()[0].datasets, name)
    try:
        return [
            make(str(folder), train=part == "train", transform=transform, download=source.download)
            for part, transform in (("train", train), ("test", test))
        ]
    except Exception as error:  # files that are not what their names say fail in many ways
        if source.download:
            if not existed:
                with suppress(OSError):  # not empty: something was fetched
                    folder.rmdir()
            raise InputError(f"{name} could not be fetched into --data {folder}: {first_line(error)}") from error
        raise InputError(
            f"--data {folder} holds no complete {name} ({where(error)}): fetch it with --download"
        ) from error


def _augmented(name: str, description: str, classes: int, parts: list[Any], *, epochs: int, sample: int) -> Task:
    train, test = parts
    return Task(
        name,
        train,
        test,
        goal=Classification(classes, LABEL_SMOOTHING),
        description=f"{description}, strongly augmented",
        epochs=epochs,
        batch=128,
        learning_rate=1e-3,
        weight_decay=0.05,
        collate=Mixed(classes),
        averaging=AVERAGING,
        workers=WORKERS,
        measured=sample,
    )


def _folder(name: str, source: Source) -> Path:
    if source.data is None:
        raise InputError(f"the task {name} needs its data: pass --data DIR")
    return Path(source.data)


def _torchvision() -> tuple[Any, Any]:
    try:
        import torchvision
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise InputError(
            f"torchvision cannot be used ({first_line(error)}): install it together with torch, "
            "pip install 'implicit-networks[vision]'"
        ) from error
    return torchvision, v2
