"""Pictures show the numbers, whatever they look like."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from implicit.diagnostics import GradientError, Work, residual_quantiles
from implicit.plots import plot_convergence, plot_eigenvalues, plot_gradient_error, plot_steps, plot_work_precision
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
    assert ax.get_xlabel() == "steps"
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"naive", "other", "rtol = 1e-06"}


def test_steps_picture_ends_at_all_rows(solution):
    fast = solve(lambda z: FACTORS * z + 1, torch.zeros(3, 1, dtype=torch.float64), solver=Anderson(), rtol=1e-6)
    ax = plot_steps({"naive": solution, "Anderson": fast})
    naive, anderson = ax.get_lines()
    assert naive.get_ydata()[-1] == anderson.get_ydata()[-1] == 100
    assert naive.get_xdata()[-1] == solution.steps.max()


def test_eigenvalues_are_counted_outside_the_unit_circle():
    ax = plot_eigenvalues({"before": torch.tensor([[1.2 + 0.5j, 0.3 + 0j]]), "after": [0.5, 0.1j, -0.7]})
    circle, before, after = ax.get_lines()
    np.testing.assert_allclose(np.hypot(*circle.get_data()), 1)
    assert before.get_label() == "before: largest modulus 1.3, 1 of 2 outside"
    assert after.get_label() == "after: largest modulus 0.7, 0 of 3 outside"
    np.testing.assert_allclose(after.get_ydata(), [0, 0.1, 0])
    assert plot_eigenvalues([]).get_lines()[1].get_label() == "eigenvalues: largest modulus 0, 0 of 0 outside"


def test_work_is_drawn_against_the_residual_and_what_failed_is_hollow():
    rows = [Work("a", 1e-2, 5e-3, 4.0, 0.1, 1.0), Work("a", 1e-4, 2e-3, 9.0, 0.3, 0.5), Work("b", 1e-2, 1e-3, 2, 1, 1)]
    ax = plot_work_precision(iter(rows))
    curve = next(line for line in ax.get_lines() if line.get_label() == "a")
    assert curve.get_xydata().tolist() == [[5e-3, 4], [2e-3, 9]]
    assert [line.get_markerfacecolor() == "none" for line in ax.get_lines() if line.get_marker() == "o"] == [
        False,
        True,
    ]
    assert "evaluations" in ax.get_ylabel()
    timed = plot_work_precision(rows, seconds=True)
    assert timed.get_lines()[0].get_ydata().tolist() == [0.1, 0.3]
    assert timed.get_ylabel() == "seconds"


def test_gradient_errors_are_drawn_against_tolerance_or_cost():
    rows = [GradientError("a", 1e-2, 0.9, 0.3, 7.0, 0.1), GradientError("a", 1e-4, 1.0, 0.01, 12.0, 0.2)]
    ax = plot_gradient_error(rows)
    assert ax.get_lines()[0].get_xydata().tolist() == [[1e-2, 0.3], [1e-4, 0.01]]
    assert "rtol" in ax.get_xlabel()
    ax = plot_gradient_error(rows, seconds=True)
    assert ax.get_lines()[0].get_xdata().tolist() == [0.1, 0.2]
    assert "seconds" in ax.get_xlabel()


def test_pictures_draw_where_they_are_told(solution):
    drawn = {
        plot_convergence: solution,
        plot_steps: solution,
        plot_eigenvalues: [1j],
        plot_work_precision: [Work("a", 1, 1, 1, 1, 1)],
    }
    for plot, what in {**drawn, plot_gradient_error: [GradientError("a", 1, 1, 1, 1, 1)]}.items():
        _, ax = plt.subplots()
        assert plot(what, ax=ax) is ax
    for plot in (plot_work_precision, plot_gradient_error):
        with pytest.raises(ValueError, match="no rows to draw"):
            plot([])
