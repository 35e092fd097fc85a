"""The contestants of the tasks on pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from .progressive import Progressive
from .readings import readings


@dataclass(frozen=True)
class Form:
    """The pictures of a task, and the stages of its small convolutional networks."""

    channels: int
    side: int
    classes: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    patch: int = 1


def grey(task: Task) -> Contestants:
    """Networks on 28×28 pictures: small ones of some 75,000 parameters, and a ViT with Para-Formers of its size."""
    form = Form(1, 28, _classes(task), widths=(16, 32), depths=(3, 3), patch=2)
    small = _small(form) | _paraformers(form, branches=4, width=36)

    def densenet(width: int) -> nn.Module:
        return baselines.densenet(1, form.classes, growth=12, depths=(4, 4), width=width)

    small["densenet"] = replace(small["densenet"], build=densenet)  # the form for larger pictures has too many weights
    beside = {f"{name}-vit": row for name, row in _paraformers(form, branches=4, width=48).items()}

    def vit(_: int) -> nn.Module:
        return baselines.vit(1, form.classes, image_size=28, patch_size=4, width=48, heads=3, hidden=192, depth=8)

    beside["vit"] = Contestant("explicit", "ViT of torchvision, eight layers of width 48", vit, fixed=True)
    beside = {name: replace(row, usual=False) for name, row in beside.items()}
    return against("gd", 16, small) | against("vit", 192, beside)


def cifar(task: Task) -> Contestants:
    """Networks on 32×32 pictures: small ones, and the wide, the deep, the ConvNeXt and the ViT form."""
    form = Form(3, 32, _classes(task), widths=(32, 64, 128), depths=(3, 3, 3))
    beside = {f"{name}-vit": row for name, row in _paraformers(form, branches=6, width=192).items()}
    return (
        against("gd", 32, _small(form) | _paraformers(form, branches=4, width=96))
        | against("gd-wide", 160, _wide(form.classes))
        | against("gd-deep", 16, _deep(form.classes))
        | _convnext(form.classes, widths=(64, 128, 256), depths=(3, 3, 3), patch=2)
        | _vit(form.classes, image_size=32, patch_size=4)
        | against("vit", 768, {name: replace(row, usual=False) for name, row in beside.items()})
    )


def imagenet(task: Task) -> Contestants:
    """The tiny ConvNeXt and ViT with every method in place of their residual sums."""
    classes = _classes(task)
    rows = _convnext(classes, widths=(96, 192, 384, 768), depths=(3, 3, 9, 3), patch=4)
    rows |= _vit(classes, image_size=224, patch_size=16)
    usual = ("convnext", "apg2-convnext", "vit", "apg2-vit")
    return {name: replace(row, usual=name in usual) for name, row in rows.items()}


def _small(form: Form) -> Contestants:
    def make(method: Method, reading: Reading, hidden: int) -> nn.Module:
        def blocks(width: int) -> Blocks:
            return convolutional(width, hidden * width // form.widths[0])

        return image_network(
            form.channels,
            form.classes,
            method,
            reading=reading,
            blocks=blocks,
            widths=form.widths,
            depths=form.depths,
            patch=form.patch,
        )

    return readings(make) | {
        "pgd-deq-jfb": Contestant(
            "equilibrium",
            "infinite depth, trained by Jacobian-free backpropagation",
            partial(make, METHODS["pgd"], InfiniteDepth(gradient=PhantomGradient(steps=1))),
        ),
        "densenet": Contestant(
            "explicit",
            "DenseNet of torchvision",
            lambda growth: baselines.densenet(form.channels, form.classes, growth=growth, width=2 * growth),
        ),
        "mdeq": Contestant(
            "equilibrium",
            "multiscale equilibrium network, two scales",
            lambda coarse: MDEQ(form.channels, form.classes, fine=form.widths[0], coarse=coarse, groups=1),
        ),
        "mondeq": Contestant(
            "equilibrium",
            "monotone operator equilibrium network on the pixels",
            lambda width: nn.Sequential(nn.Flatten(), mondeq(form.channels * form.side**2, form.classes, width=width)),
        ),
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


def _paraformers(form: Form, *, branches: int, width: int) -> Contestants:
    def make(hidden: int, *, as_coded: bool = False) -> ParaFormer:
        return ParaFormer(
            image_size=form.side,
            patch_size=4,
            channels=form.channels,
            classes=form.classes,
            branches=branches,
            width=width,
            heads=3,
            hidden=hidden,
            as_coded=as_coded,
        )

    return {
        "paraformer": Contestant("parallel", "Para-Former: transformer branches side by side", make),
        "paraformer-as-coded": Contestant(
            "parallel",
            "Para-Former as its published code has it: network and progressive training",
            lambda hidden: Progressive(make(hidden, as_coded=True)),
            usual=False,
        ),
    }


def _classes(task: Task) -> int:
    assert isinstance(task.goal, Classification)
    return task.goal.classes
