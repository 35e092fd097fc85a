"""The inverse problem: operators, the optimum, and networks that start as the algorithm."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
import torch
from torch.utils.data import TensorDataset

from experiments.cli import main
from experiments.contestants.deblurring import (
    EXPLICIT_STEP,
    KINK,
    WEIGHT,
    DataStep,
    EdgeStep,
    equilibrium,
    optimum,
    unrolled,
)
from experiments.tasks.deblurring import RADIUS, SPREAD, blur
from experiments.tasks.make import make_task


@pytest.fixture(scope="module")
def pictures():
    return make_task("deblur").sample(2)[0].double()


def test_the_blur_is_scipys_and_its_own_adjoint():
    x, u = torch.randn(2, 3, 1, 24, 20, dtype=torch.float64)
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), SPREAD, mode="wrap", radius=RADIUS)
    np.testing.assert_allclose(blur(x)[0, 0].numpy(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close((blur(x) * u).sum(), (x * blur(u)).sum(), rtol=1e-12, atol=0)


def test_the_edge_step_is_the_gradient_of_a_convex_penalty():
    step = EdgeStep(0.3).double()
    scale = (0.3 * WEIGHT) ** 0.5 / KINK

    def penalty(z):
        differences = scale * torch.stack((z.roll(-1, 3) - z, z.roll(-1, 2) - z))
        return (step.kink**2 * (differences / step.kink).cosh().log()).sum()

    z, other = torch.rand(2, 2, 1, 10, 12, dtype=torch.float64)
    torch.testing.assert_close(step(z), -torch.func.grad(penalty)(z), rtol=0, atol=1e-9)  # filters made in float32
    assert ((step(z) - step(other)) * (z - other)).sum() <= 0  # −P is monotone


def loss_and_slope(x, y):
    """Of the classical problem, in NumPy."""
    x = x.reshape(y.shape)

    def blurred(picture):
        return scipy.ndimage.gaussian_filter(picture, SPREAD, mode="wrap", radius=RADIUS)

    residual = blurred(x) - y
    loss, slope = 0.5 * (residual**2).sum(), blurred(residual)
    for axis in (0, 1):
        difference = np.roll(x, -1, axis) - x
        loss += WEIGHT * np.log(np.cosh(difference / KINK)).sum()
        bounded = WEIGHT / KINK * np.tanh(difference / KINK)
        slope += np.roll(bounded, 1, axis) - bounded
    return loss, slope.ravel()


def test_the_optimum_is_scipys(pictures):
    best = optimum(pictures, rtol=1e-10)
    for y, x in zip(pictures[:, 0].numpy(), best[:, 0].numpy(), strict=True):
        options = {"maxiter": 20_000, "maxfun": 50_000, "ftol": 1e-16, "gtol": 1e-10}
        found = scipy.optimize.minimize(loss_and_slope, y.ravel(), (y,), "L-BFGS-B", jac=True, options=options)
        np.testing.assert_allclose(x.ravel(), found.x, rtol=0, atol=1e-5)
        assert np.abs(loss_and_slope(x.ravel(), y)[1]).max() < 1e-8


@pytest.mark.parametrize("method", ["pgd", "fista"])
def test_the_untrained_equilibrium_is_the_optimum(method, pictures):
    net = equilibrium(method, rtol=1e-8, max_steps=1000).double()
    torch.testing.assert_close(net(pictures), optimum(pictures), rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_untrained_networks_come_closer_with_depth_and_fista_faster(alpha, pictures):
    best, errors = optimum(pictures), {}
    for method in ("pgd", "fista"):
        with torch.no_grad():
            values = [unrolled(method, alpha, depth).double()(pictures) for depth in (1, 4, 16, 64)]
        errors[method] = [(value - best).norm().item() for value in values]
    assert sorted(errors["pgd"], reverse=True) == errors["pgd"]
    assert errors["fista"][-1] < 0.2 * errors["pgd"][-1]


def test_an_explicit_layer_is_a_gradient_step(pictures):
    y = pictures[0, 0].numpy()
    with torch.no_grad():
        moved = unrolled("pgd", 1.0, 1).double()(pictures)[0, 0].numpy()
    expected = y - EXPLICIT_STEP * loss_and_slope(y.ravel(), y)[1].reshape(y.shape)
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-7)  # the parameters were made in single precision


@pytest.mark.usefixtures("latency_of_one_row")
def test_training_gains_on_the_blurred_pictures_and_the_report_shows_them(tmp_path, monkeypatch):
    whole = make_task("deblur")
    parts = ((whole.train, 4), (whole.test, 20))
    train, test = (TensorDataset(*(part[::step] for part in data.tensors)) for data, step in parts)
    few = replace(whole, train=train, test=test)
    monkeypatch.setattr("experiments.tasks.deblurring.deblur", lambda: few)
    models = ["--models", "classical,pgd-explicit,fista-deq", "--epochs", "1", "--seeds", "1"]
    assert main(["compare", "deblur", "--no-search", *models, "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    scores = {name: model["runs"][0]["score"] for name, model in results["models"].items()}
    blurred, sharp = few.test.tensors
    start = -10 * torch.log10((blurred - sharp).square().mean()).item()
    assert scores["classical"] > start + 1
    assert scores["pgd-explicit"] > start
    assert scores["fista-deq"] > start + 1
    assert results["models"]["classical"]["parameters"] == 0
    assert results["terms"] == "sizes of their own"
    for name in ("restorations", "distances", "cost"):
        assert (tmp_path / "run" / f"{name}.png").stat().st_size > 10_000


def test_the_data_step_knows_the_picture():
    step, z = DataStep(0.5), torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(step(z, blur(z)), torch.zeros_like(z), rtol=0, atol=1e-6)
