"""The contestants of the small tasks."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from models import Dense, InfiniteDepth, Method, ParaFormer, ProximalGradient, baselines
from models.blocks import Blocks, convolutional
from models.mdeq import MDEQ
from models.mondeq import mondeq
from models.networks import image_network, vector_network
from models.readings import Reading

from ..errors import InputError
from ..tasks.goals import Classification
from ..tasks.task import Task
from .contestant import Contestant, Contestants, against
from .progressive import Progressive
from .readings import readings
from .started import Started, proposed
from .terms import Build


def vectors(task: Task, *, width: int, depth: int, size: int) -> Contestants:
    """Networks from vectors to logits, or to vectors; `size` is that of the baseline."""
    x, target = task.sample(1)
    inputs = x.shape[1]
    if isinstance(task.goal, Classification):
        outputs = task.goal.classes
    elif target.ndim == 2:
        outputs = target.shape[1]
    else:
        raise InputError(f"task {task.name}: its targets have shape {tuple(target.shape)}, not (batch, numbers)")

    def make(method: Method, reading: Reading, hidden: int) -> nn.Sequential:
        return vector_network(inputs, outputs, method, reading=reading, width=width, hidden=hidden, depth=depth)

    rows = readings(make)
    rows["mondeq"] = Contestant(
        "equilibrium", "monotone operator equilibrium network", lambda width: mondeq(inputs, outputs, width=width)
    )
    start = InfiniteDepth(initial=lambda blocks: proposed(Dense(width, width)))
    rows["pgd-deq-start"] = _started(lambda hidden: Started(*make(ProximalGradient(), start, hidden)))
    return against("gd", size, rows)


def rings(task: Task) -> Contestants:
    """Networks on the plane, and on the line."""
    return vectors(task, width=12, depth=6, size=24)


def parity(task: Task) -> Contestants:
    """Networks on eight signs."""
    return vectors(task, width=16, depth=6, size=32)


def pictures(task: Task) -> Contestants:
    """Networks on pictures of any size: six layers, in stages that halve the side and double the width of 16."""
    picture, _ = task.sample(1)
    assert isinstance(task.goal, Classification)
    classes, (channels, *sides) = task.goal.classes, picture.shape[1:]
    stages = 1 + (min(sides) > 16) + (min(sides) > 32)
    widths, depths = [16 * 2**stage for stage in range(stages)], [6 // stages] * stages

    def make(method: Method, reading: Reading, hidden: int) -> nn.Sequential:
        def blocks(width: int) -> Blocks:
            start = convolutional(width, width // 4).free  # small beside the cell, which does not use the free one
            whole = convolutional(width, hidden * width // widths[0])
            return replace(whole, free=start) if reading is started else whole

        return image_network(
            channels, classes, method, reading=reading, blocks=blocks, widths=widths, depths=depths, pool=4
        )

    started = InfiniteDepth(initial=lambda blocks: proposed(blocks.free()))
    rows = readings(make)
    rows["pgd-deq-start"] = _started(lambda hidden: Started(*make(ProximalGradient(), started, hidden)))
    return against("gd", 16, rows)


def digits(task: Task) -> Contestants:
    """Networks on 8×8 pictures."""
    rows = pictures(task)
    rows |= {
        "densenet": Contestant(
            "explicit",
            "DenseNet of torchvision",
            lambda width: baselines.densenet(1, 10, growth=8, depths=(4, 4), width=width),
        ),
        "vit": Contestant(
            "explicit",
            "ViT of torchvision",
            lambda hidden: baselines.vit(1, 10, image_size=8, patch_size=2, width=24, heads=3, hidden=hidden, depth=4),
            usual=False,  # it needs many more epochs than the others
        ),
        "mondeq": Contestant(
            "equilibrium",
            "monotone operator equilibrium network on the pixels",
            lambda width: nn.Sequential(nn.Flatten(), mondeq(64, 10, width=width)),
        ),
        "mdeq": Contestant(
            "equilibrium",
            "multiscale equilibrium network, two scales",
            lambda coarse: MDEQ(1, 10, fine=12, coarse=coarse, groups=1),
            usual=False,
        ),
        "paraformer": Contestant("parallel", "Para-Former: transformer branches side by side", _paraformer),
        "paraformer-progressive": Contestant(
            "parallel",
            "Para-Former, in every other epoch a step on each sum of its first branches",
            lambda hidden: Progressive(_paraformer(hidden)),
            usual=False,
        ),
        "paraformer-as-coded": Contestant(
            "parallel",
            "Para-Former as its published code has it: network and progressive training",
            lambda hidden: Progressive(_paraformer(hidden, as_coded=True)),
            usual=False,
        ),
    }
    return against("gd", 16, rows)


def _started(build: Build) -> Contestant:
    return Contestant("equilibrium", "pgd-deq started where a small network proposes", build, usual=False)


def _paraformer(hidden: int, *, as_coded: bool = False) -> ParaFormer:
    return ParaFormer(
        image_size=8,
        patch_size=2,
        channels=1,
        classes=10,
        branches=4,
        depth=2,
        width=24,
        heads=3,
        hidden=hidden,
        as_coded=as_coded,
    )
