"""Pictures show the numbers, whatever they look like."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from implicit.diagnostics import residual_quantiles
from implicit.plots import plot_convergence, plot_steps
from solvers import Anderson, Picard, solve

FACTORS = torch.tensor([[0.2], [0.5], [0.8]], dtype=torch.float64)


@pytest.fixture
def solution():
    return solve(lambda z: FACTORS * z + 1, torch.zeros(3, 1, dtype=torch.float64), solver=Picard(), rtol=1e-6)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_quantiles_carry_stopped_rows_forward(solution):
    median = residual_quantiles(solution, [0.5])[:, 0]
    assert len(median) == solution.steps.max()
    # after the two fast rows have stopped the median is the last residual of the middle one
    middle = int(solution.steps[1])
    torch.testing.assert_close(median[middle - 1 :], solution.residual[1].expand(len(median) - middle + 1))
    torch.testing.assert_close(median[:3], solution.trace[:3].median(dim=1).values)


def test_convergence_picture_holds_the_median_and_the_tolerance(solution):
    ax = plot_convergence({"naive": solution, "other": solution}, rtol=1e-6)
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines["naive"].get_ydata(), residual_quantiles(solution)[:, 1])
    assert set(lines["rtol = 1e-06"].get_ydata()) == {1e-6}
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "evaluations of f"
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"naive", "other", "rtol = 1e-06"}


def test_steps_picture_ends_at_all_rows(solution):
    fast = solve(lambda z: FACTORS * z + 1, torch.zeros(3, 1, dtype=torch.float64), solver=Anderson(), rtol=1e-6)
    ax = plot_steps({"naive": solution, "Anderson": fast})
    naive, anderson = ax.get_lines()
    assert naive.get_ydata()[-1] == anderson.get_ydata()[-1] == 100
    assert naive.get_xdata()[-1] == solution.steps.max()


def test_pictures_draw_where_they_are_told(solution):
    for plot in (plot_convergence, plot_steps):
        _, ax = plt.subplots()
        assert plot(solution, ax=ax) is ax
