"""The contestants of the tasks on pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import nn

from implicit import PhantomGradient
from models import METHODS, Method, ParaFormer, baselines
from models.blocks import Blocks, convolutional
from models.mdeq import MDEQ
from models.mondeq import mondeq
from models.networks import convnext_form, image_network, narrow_deep, vit_form, wide_shallow
from models.readings import InfiniteDepth, Reading

from ..tasks.goals import Classification
from ..tasks.task import Task
from .contestant import Contestant, Contestants, against
from .readings import readings

WIDTHS, DEPTHS = (32, 64, 128), (3, 3, 3)


def cifar(task: Task) -> Contestants:
    """Networks on 32×32 pictures: small ones, and the wide, the deep, the ConvNeXt and the ViT form."""
    classes = _classes(task)
    return (
        against("gd", 32, _small(classes))
        | against("gd-wide", 160, _wide(classes))
        | against("gd-deep", 16, _deep(classes))
        | _convnext(classes, widths=(64, 128, 256), depths=(3, 3, 3), patch=2)
        | _vit(classes, image_size=32, patch_size=4)
        | against("vit", 768, {"paraformer-vit": _paraformer(classes, branches=6, width=192, usual=False)})
    )


def imagenet(task: Task) -> Contestants:
    """The tiny ConvNeXt and ViT with every method in place of their residual sums."""
    classes = _classes(task)
    rows = _convnext(classes, widths=(96, 192, 384, 768), depths=(3, 3, 9, 3), patch=4)
    rows |= _vit(classes, image_size=224, patch_size=16)
    usual = ("convnext", "apg2-convnext", "vit", "apg2-vit")
    return {name: replace(row, usual=name in usual) for name, row in rows.items()}


def _small(classes: int) -> Contestants:
    def make(method: Method, reading: Reading, hidden: int) -> nn.Module:
        def blocks(width: int) -> Blocks:
            return convolutional(width, hidden * width // WIDTHS[0])

        return image_network(3, classes, method, reading=reading, blocks=blocks, widths=WIDTHS, depths=DEPTHS)

    return readings(make) | {
        "pgd-deq-jfb": Contestant(
            "equilibrium",
            "infinite depth, trained by Jacobian-free backpropagation",
            partial(make, METHODS["pgd"], InfiniteDepth(gradient=PhantomGradient(steps=1))),
        ),
        "densenet": Contestant(
            "explicit",
            "DenseNet of torchvision",
            lambda growth: baselines.densenet(3, classes, growth=growth, width=2 * growth),
        ),
        "mdeq": Contestant(
            "equilibrium",
            "multiscale equilibrium network, two scales",
            lambda coarse: MDEQ(3, classes, fine=32, coarse=coarse, groups=1),
        ),
        "mondeq": Contestant(
            "equilibrium",
            "monotone operator equilibrium network on the pixels",
            lambda width: nn.Sequential(nn.Flatten(), mondeq(3 * 32 * 32, classes, width=width)),
        ),
        "paraformer": _paraformer(classes, branches=4, width=96),
    }


def _wide(classes: int) -> Contestants:
    def make(method: Method, reading: Reading, hidden: int) -> nn.Module:
        return wide_shallow(classes, method, reading=reading, hidden=hidden)

    return readings(make, form="-wide") | {
        "resnet": Contestant(
            "explicit",
            "ResNet-18 of torchvision",
            lambda _: baselines.resnet(3, classes),
            usual=False,
            fixed=True,
        )
    }


def _deep(classes: int) -> Contestants:
    def make(method: Method, reading: Reading, hidden: int) -> nn.Module:
        return narrow_deep(classes, method, reading=reading, hidden=hidden)

    return readings(make, form="-deep")


def _convnext(classes: int, *, widths: tuple[int, ...], depths: tuple[int, ...], patch: int) -> Contestants:
    def make(method: Method, reading: Reading, hidden: int) -> nn.Module:
        return convnext_form(classes, method, reading=reading, widths=widths, depths=depths, patch=patch, hidden=hidden)

    def original(_: int) -> nn.Module:
        return baselines.convnext(3, classes, widths=widths, depths=depths, patch=patch)

    rows = {"convnext": Contestant("explicit", "ConvNeXt of torchvision", original, usual=False, fixed=True)}
    return against("convnext", 4 * widths[0], rows | readings(make, form="-convnext"))


def _vit(classes: int, *, image_size: int, patch_size: int) -> Contestants:
    def make(method: Method, reading: Reading, hidden: int) -> nn.Module:
        return vit_form(classes, method, reading=reading, image_size=image_size, patch_size=patch_size, hidden=hidden)

    def original(_: int) -> nn.Module:
        return baselines.vit(3, classes, image_size=image_size, patch_size=patch_size)

    rows = {"vit": Contestant("explicit", "ViT of torchvision", original, usual=False, fixed=True)}
    return against("vit", 768, rows | readings(make, form="-vit"))


def _paraformer(classes: int, *, branches: int, width: int, usual: bool = True) -> Contestant:
    def make(hidden: int) -> nn.Module:
        sizes = {"branches": branches, "width": width, "hidden": hidden}
        return ParaFormer(image_size=32, patch_size=4, channels=3, classes=classes, heads=3, **sizes)

    return Contestant("parallel", "Para-Former: transformer branches side by side", make, usual)


def _classes(task: Task) -> int:
    assert isinstance(task.goal, Classification)
    return task.goal.classes
