"""The networks that are compared: for each task every method in every reading it admits, and baselines."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from models import METHODS, Method, ParaFormer, baselines
from models.blocks import Blocks, convolutional
from models.mdeq import MDEQ
from models.mondeq import mondeq
from models.networks import image_network, vector_network
from models.readings import Explicit, Implicit, InfiniteDepth, Reading, Sweeps

from .terms import Build

MakeNetwork = Callable[[Method, Reading, int], nn.Module]

BASELINE = "gd"
"""The contestant that sets the size of the others and that they are compared with."""


@dataclass(frozen=True)
class Contestant:
    """One row of the comparison."""

    reading: str
    description: str
    build: Build
    usual: bool = True
    """Whether it takes part where all are asked for."""


@dataclass(frozen=True)
class Family:
    """The contestants of a task, and the dial of the baseline."""

    contestants: dict[str, Contestant]
    dial: int


def readings(make: MakeNetwork) -> dict[str, Contestant]:
    """Every method in every reading it admits; learned coefficients, but for equilibria."""

    def row(reading: str, description: str, method: Method, kind: Reading, usual: bool = True) -> Contestant:
        return Contestant(reading, description, partial(make, method, kind), usual)

    rows = {}
    for name, method in METHODS.items():
        learned, title = method.learned(), _title(method)
        if method.is_proximal:
            rows[f"{name}-explicit"] = row("explicit", f"{title}, alpha = 1", learned, Explicit(), name != "ppa")
            rows[f"{name}-implicit"] = row(
                "implicit", f"{title}, alpha = 0: a solve in each layer", learned, Implicit()
            )
        else:
            rows[name] = row("explicit", f"{title}, unrolled", learned, Explicit())
    for name, method in METHODS.items():
        title = _title(method)
        if method.has_equilibrium:
            rows[f"{name}-deq"] = row(
                "equilibrium", f"infinite depth: one tied step, {title}", method, InfiniteDepth(), name == "pgd"
            )
        if not method.is_proximal:
            rows[f"{name}-parallel"] = row(
                "parallel", f"{title}, one sweep over depth", method.learned(), Sweeps(1), name == "gd"
            )
    return rows


def _title(method: Method) -> str:
    """The class's name in words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(method).__name__)


def _vectors(inputs: int, outputs: int, *, width: int, depth: int, dial: int) -> Family:
    def make(method: Method, reading: Reading, hidden: int) -> nn.Module:
        return vector_network(inputs, outputs, method, reading=reading, width=width, hidden=hidden, depth=depth)

    rows = readings(make)
    rows["mondeq"] = Contestant(
        "equilibrium", "monotone operator equilibrium network", lambda width: mondeq(inputs, outputs, width=width)
    )
    return Family(rows, dial)


def _digits() -> Family:
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
            usual=False,  # the learning rate that suits the others is far too large for it
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
            "parallel",
            "Para-Former: transformer branches side by side",
            lambda hidden: ParaFormer(
                image_size=8,
                patch_size=2,
                channels=1,
                classes=10,
                branches=4,
                depth=2,
                width=24,
                heads=3,
                hidden=hidden,
            ),
        ),
    }
    return Family(rows, dial=16)


FAMILIES: dict[str, Callable[[], Family]] = {
    "digits": _digits,
    "rings": lambda: _vectors(2, 2, width=12, depth=6, dial=24),
    "parity": lambda: _vectors(8, 2, width=16, depth=6, dial=32),
    "telgarsky": lambda: _vectors(1, 1, width=12, depth=6, dial=24),
}
"""For each task its contestants."""
