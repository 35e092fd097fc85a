"""Pictures of the README are what their scripts draw today."""

import importlib.util
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

FIGURES = Path(__file__).parents[1] / "docs" / "figures"


@pytest.fixture(scope="module")
def readings():
    specification = importlib.util.spec_from_file_location("readings", FIGURES / "readings.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_committed_curves_are_what_the_toolkit_computes(readings):
    with Image.open(readings.PICTURE) as picture:
        committed = json.loads(picture.text["Description"])
    computed = readings.computed()
    assert committed.keys() == computed.keys()
    for name, paths in computed.items():
        torch.testing.assert_close(paths, torch.tensor(committed[name], device="cpu"), rtol=1e-3, atol=1e-3)


def difference(one, other):
    """In mean, of 255 levels, over the part with the curves: letters differ from version to version."""
    with Image.open(one) as first, Image.open(other) as second:
        assert first.size == second.size
        width, height = first.size
        curves = (0, int(0.45 * height), width, int(0.92 * height))
        ours, theirs = (
            np.asarray(each.convert("L").crop(curves).resize((600, 115)), float) for each in (first, second)
        )
    return np.abs(ours - theirs).mean()


def test_the_committed_picture_is_what_is_drawn(readings, tmp_path):
    drawn = tmp_path / "readings.png"
    figure = readings.draw(readings.computed())
    figure.savefig(drawn, dpi=150)
    plt.close(figure)
    assert difference(readings.PICTURE, drawn) < 0.25


def test_another_curve_is_another_picture(readings, tmp_path):
    paths = readings.computed()
    figure = readings.draw(paths | {"equilibrium": paths["equilibrium"][:2]})
    figure.savefig(tmp_path / "other.png", dpi=150)
    plt.close(figure)
    assert difference(readings.PICTURE, tmp_path / "other.png") > 0.25


def test_the_curves_show_what_the_captions_say(readings):
    """Each against an answer known without the network: the minimum, the serial layers."""
    paths, target = readings.computed(), readings.TARGET[0]
    values = readings.objective(paths["implicit"][0])
    assert (values.diff() < 0).all()  # the implicit steps go down; explicit ones overshoot
    across = (paths["explicit"][0] - target) @ readings.WEIGHT[0]
    assert (across.sign().diff() != 0).sum() >= 3
    for path in paths["equilibrium"]:
        torch.testing.assert_close(path[-1], target, rtol=0, atol=1e-4)
    for sweeps, path in zip(readings.SWEEPS, paths["parallel"], strict=True):
        errors = (path - paths["implicit"][0]).norm(dim=1)
        assert (errors[: sweeps + 1] < 1e-4).all()
        assert (errors[sweeps + 1 :] > 1e-2).all()
