"""The contestants of the tasks on pictures."""

from __future__ import annotations

from functools import partial

from torch import nn

from implicit import PhantomGradient
from models import METHODS, Method, ParaFormer, baselines
from models.blocks import Blocks, convolutional
from models.mdeq import MDEQ
from models.mondeq import mondeq
from models.networks import convnext_form, image_network, narrow_deep, vit_form, wide_shallow
from models.readings import InfiniteDepth, Reading

from ..goals import Classification
from ..tasks import Task
from .base import Contestant, Family, readings

WIDTHS, DEPTHS = (32, 64, 128), (3, 3, 3)


def cifar(task: Task) -> Family:
    """Networks on 32×32 pictures: of one size, and the wide, the deep, the ConvNeXt and the ViT form as they are."""
    classes = _classes(task)

    def make(method: Method, reading: Reading, hidden: int) -> nn.Module:
        def blocks(width: int) -> Blocks:
            return convolutional(width, hidden * width // WIDTHS[0])

        return image_network(3, classes, method, reading=reading, blocks=blocks, widths=WIDTHS, depths=DEPTHS)

    rows = readings(make)
    rows["pgd-deq-jfb"] = Contestant(
        "equilibrium",
        "infinite depth, trained by Jacobian-free backpropagation",
        partial(make, METHODS["pgd"], InfiniteDepth(gradient=PhantomGradient(steps=1))),
    )
    rows |= readings(lambda method, reading, _: wide_shallow(classes, method, reading=reading), form="-wide")
    rows |= readings(lambda method, reading, _: narrow_deep(classes, method, reading=reading), form="-deep")
    rows |= readings(
        lambda method, reading, _: convnext_form(
            classes, method, reading=reading, widths=(64, 128, 256), depths=(3, 3, 3), patch=2
        ),
        form="-convnext",
    )
    rows |= readings(
        lambda method, reading, _: vit_form(classes, method, reading=reading, image_size=32, patch_size=4),
        form="-vit",
    )
    rows |= {
        "resnet": Contestant(
            "explicit", "ResNet-18 of torchvision", lambda _: baselines.resnet(3, classes), fixed=True
        ),
        "densenet": Contestant(
            "explicit", "DenseNet of torchvision", lambda width: baselines.densenet(3, classes, width=width)
        ),
        "convnext": Contestant(
            "explicit",
            "ConvNeXt of torchvision",
            lambda _: baselines.convnext(3, classes, widths=(64, 128, 256), depths=(3, 3, 3), patch=2),
            usual=False,
            fixed=True,
        ),
        "vit": Contestant(
            "explicit",
            "ViT of torchvision",
            lambda _: baselines.vit(3, classes, image_size=32, patch_size=4),
            usual=False,
            fixed=True,
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
        "paraformer": Contestant(
            "parallel",
            "Para-Former: transformer branches side by side",
            lambda hidden: ParaFormer(
                image_size=32, patch_size=4, channels=3, classes=classes, branches=4, width=96, heads=3, hidden=hidden
            ),
        ),
    }
    return Family(rows, dial=32)


def imagenet(task: Task) -> Family:
    """The tiny ConvNeXt and ViT with every method in place of their residual sums."""
    classes = _classes(task)
    rows = {
        "convnext": Contestant(
            "explicit", "ConvNeXt-T of torchvision", lambda _: baselines.convnext(3, classes), fixed=True
        ),
        "vit": Contestant("explicit", "ViT-Ti/16 of torchvision", lambda _: _vit(classes), fixed=True),
    }
    rows |= readings(lambda method, reading, _: convnext_form(classes, method, reading=reading), form="-convnext")
    rows |= readings(lambda method, reading, _: vit_form(classes, method, reading=reading), form="-vit")
    return Family(rows, dial=1, baseline="convnext")


def _classes(task: Task) -> int:
    assert isinstance(task.goal, Classification)
    return task.goal.classes


def _vit(classes: int) -> nn.Module:
    return baselines.vit(3, classes, image_size=224, patch_size=16)
