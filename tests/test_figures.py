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


def test_the_committed_picture_is_what_is_drawn(readings, tmp_path):
    drawn = tmp_path / "readings.png"
    figure = readings.draw(readings.computed())
    figure.savefig(drawn, dpi=150)
    plt.close(figure)
    with Image.open(readings.PICTURE) as picture, Image.open(drawn) as other:
        assert picture.size == other.size
        ours, theirs = (np.asarray(each.convert("L").resize((300, 122)), dtype=float) for each in (picture, other))
    assert np.abs(ours - theirs).mean() < 1.5  # of 255: room for another version's letters, not for another curve


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
