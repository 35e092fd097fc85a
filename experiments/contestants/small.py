"""The contestants of the small tasks."""

from __future__ import annotations

from torch import nn

from models import Method, ParaFormer, baselines
from models.blocks import Blocks, convolutional
from models.mdeq import MDEQ
from models.mondeq import mondeq
from models.networks import image_network, vector_network
from models.readings import Reading

from ..tasks import Task
from ..tasks.goals import Classification
from .contestant import Contestant, Contestants, against, readings
from .progressive import Progressive

PARAFORMER_RATE = 2.5e-2
"""The others' learning rate leaves it unfinished after so few steps."""


def vectors(task: Task, *, width: int, depth: int, dial: int) -> Contestants:
    """Networks from vectors to logits, or to vectors."""
    x, target = task.sample(1)
    inputs = x.shape[1]
    outputs = task.goal.classes if isinstance(task.goal, Classification) else target.shape[1]

    def make(method: Method, reading: Reading, hidden: int) -> nn.Module:
        return vector_network(inputs, outputs, method, reading=reading, width=width, hidden=hidden, depth=depth)

    rows = readings(make)
    rows["mondeq"] = Contestant(
        "equilibrium", "monotone operator equilibrium network", lambda width: mondeq(inputs, outputs, width=width)
    )
    return against("gd", dial, rows)


def digits(task: Task) -> Contestants:
    """Networks on 8×8 pictures."""
    channels, depth = 16, 6

    def make(method: Method, reading: Reading, hidden: int) -> nn.Module:
        def blocks(width: int) -> Blocks:
            return convolutional(width, hidden)

        return image_network(1, 10, method, reading=reading, blocks=blocks, widths=(channels,), depths=(depth,), pool=4)

    rows = readings(make)
    rows |= {
        "densenet": Contestant(
            "explicit",
            "DenseNet of torchvision",
            lambda dial: baselines.densenet(1, 10, growth=8, depths=(4, 4), width=dial),
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
        "paraformer": Contestant(
            "parallel", "Para-Former: transformer branches side by side", _paraformer, learning_rate=PARAFORMER_RATE
        ),
        "paraformer-progressive": Contestant(
            "parallel",
            "Para-Former, its first steps on the first 1 … B branches in turn",
            lambda hidden: Progressive(_paraformer(hidden), rounds=10),
            usual=False,
            learning_rate=PARAFORMER_RATE,
        ),
    }
    return against("gd", 16, rows)


def _paraformer(hidden: int) -> ParaFormer:
    return ParaFormer(
        image_size=8, patch_size=2, channels=1, classes=10, branches=4, depth=2, width=24, heads=3, hidden=hidden
    )
