"""Pictures show the numbers, whatever they look like."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from implicit.diagnostics import GradientError, Work, residual_quantiles
from implicit.monitoring import Sample
from implicit.plots import (
    COLOURS,
    plot_convergence,
    plot_eigenvalues,
    plot_gradient_error,
    plot_monitor,
    plot_steps,
    plot_trajectories,
    plot_work_precision,
)
from solvers import Anderson, NewtonKrylov, Picard, solve


def affine(z):
    return torch.tensor([[0.2], [0.5], [0.8]], dtype=z.dtype) * z + 1


@pytest.fixture
def solution():
    return solve(affine, torch.zeros(3, 1, dtype=torch.float64), solver=Picard(), rtol=1e-6)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_quantiles_carry_stopped_rows_forward(solution):
    median = residual_quantiles(solution, [0.5])[:, 0]
    assert len(median) == solution.steps.max()
    # after the two fast rows have stopped the median is the last residual of the middle one
    middle = int(solution.steps[1])
    torch.testing.assert_close(median[middle - 1 :], solution.residual[1].cpu().expand(len(median) - middle + 1))
    torch.testing.assert_close(median[:3], solution.trace[:3].median(dim=1).values.cpu())


def test_convergence_picture_holds_the_median_and_the_tolerance(solution):
    ax = plot_convergence({"naive": solution, "other": solution}, rtol=1e-6)
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines["naive"].get_ydata(), residual_quantiles(solution)[:, 1])
    assert set(lines["rtol = 1e-06"].get_ydata()) == {1e-6}
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "steps"
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"naive", "other", "rtol = 1e-06"}


def test_the_worst_rows_are_drawn_by_themselves(solution):
    ax = plot_convergence(solution, worst=2)
    rows = [line for line in ax.get_lines() if line.get_linewidth() < 1]
    for line, row in zip(rows, (2, 1), strict=True):  # those that took longest
        np.testing.assert_allclose(line.get_ydata(), solution.trace[:, row].cpu())
    assert "worst 2 rows" in {text.get_text() for text in ax.get_legend().get_texts()}
    with pytest.raises(ValueError, match="worst=-1"):
        plot_convergence(solution, worst=-1)


def test_residuals_are_drawn_against_evaluations_and_seconds_too(solution):
    z0 = torch.zeros(3, 1, dtype=torch.float64)
    newton = solve(affine, z0, solver=NewtonKrylov(), rtol=1e-6)
    ax = plot_convergence({"plain": solution, "newton": newton}, evaluations=True)
    plain, products = ax.get_lines()
    assert plain.get_xdata().tolist() == list(range(1, len(solution.trace) + 1))  # one a step
    share = (newton.evaluations.sum() / newton.steps.sum()).item()
    assert products.get_xdata()[-1] == pytest.approx(share * len(newton.trace))
    assert ax.get_xlabel() == "evaluations of f per row"
    ax = plot_convergence({"plain": solution, "newton": newton}, seconds={"plain": 2.0, "newton": 0.5})
    assert [line.get_xdata()[-1] for line in ax.get_lines()] == pytest.approx([2.0, 0.5])
    assert ax.get_xlabel() == "seconds"
    assert plot_convergence(solution, seconds=3.0).get_lines()[0].get_xdata()[-1] == pytest.approx(3)
    for wrong in (1.0, {"plain": 1.0}):
        with pytest.raises(ValueError, match="a number for each of plain, newton"):
            plot_convergence({"plain": solution, "newton": newton}, seconds=wrong)
    with pytest.raises(ValueError, match="pass one of them"):
        plot_convergence(solution, evaluations=True, seconds=1.0)


def test_a_histogram_of_steps_holds_all_rows(solution):
    ax = plot_steps({"plain": solution}, histogram=True)
    (shape,) = ax.patches
    heights = {}
    for x, y in shape.get_xy():
        heights[round(x, 6)] = max(heights.get(round(x, 6), 0), y)
    for steps in solution.steps.tolist():  # up to 56: two steps a bar
        assert heights[0.5 + 2 * ((steps - 1) // 2)] == pytest.approx(100 / 3)
    empty = solve(lambda z: z, torch.zeros(0, 1), solver=Picard())
    assert plot_steps(empty).get_lines()[0].get_xdata().tolist() == []
    plot_steps(empty, histogram=True)
    plot_convergence(empty, worst=2)


def test_trajectories_in_the_plane_are_the_states_themselves():
    path = torch.randn(5, 3, 2)
    ax = plot_trajectories(path, rows=2)
    tracks = [line for line in ax.get_lines() if len(line.get_xdata()) == 5]
    assert len(tracks) == 2
    np.testing.assert_allclose(np.stack([line.get_xydata() for line in tracks], axis=1), path[:, :2].cpu(), rtol=1e-6)
    stars = [line.get_xydata()[0] for line in ax.get_lines() if line.get_marker() == "*"]
    np.testing.assert_allclose(stars, path[-1, :2].cpu(), rtol=1e-6)


def test_trajectories_of_long_states_lie_in_their_principal_plane():
    basis = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q[:2]
    plane = torch.randn(6, 4, 2, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    states = [(state @ basis).view(4, 7, 1) for state in plane]
    states[2][1] = float("nan")  # of one row, at one step
    ax = plot_trajectories({"a": states[:3], "b": states[3:]})
    tracks = [line.get_xydata() for line in ax.get_lines() if len(line.get_xdata()) == 3]
    for row in range(4):  # distances are kept: nothing lies outside the plane
        expected = torch.linalg.vector_norm(plane[4, row] - plane[3, row])
        assert np.linalg.norm(tracks[4 + row][1] - tracks[4 + row][0]) == pytest.approx(expected.item())
    shares = [float(label.split("(")[1].split("%")[0]) for label in (ax.get_xlabel(), ax.get_ylabel())]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert shares[0] > shares[1]
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"a", "b"}


def test_trajectories_of_numbers_are_drawn_against_the_step_and_odd_ones_are_refused():
    ax = plot_trajectories(torch.tensor([[[1.0]], [[2.0]], [[4.0]]]))
    assert ax.get_lines()[0].get_xydata().tolist() == [[0, 1], [1, 2], [2, 4]]
    assert ax.get_xlabel() == "step"
    with pytest.raises(ValueError, match=r"\[2, 3\] numbers per row"):
        plot_trajectories({"a": torch.zeros(2, 1, 2), "b": torch.zeros(2, 1, 3)})
    with pytest.raises(ValueError, match="no states"):
        plot_trajectories([])


def test_the_monitor_is_drawn_layer_by_layer():
    samples = [Sample(step, layer, 10.0**-step, 1.0, 5.0, 7.0, 0.5, 0.9) for step in (0, 2) for layer in ("a", "b")]
    panels = plot_monitor(samples).child_axes
    assert [panel.get_ylabel() for panel in panels][1:] == [
        "evaluations per row",
        "largest of the rows sampled",
        "cosine",
    ]
    for panel, expected in zip(panels, ([1, 0.01], [12, 12], [0.5, 0.5], [0.9, 0.9]), strict=True):
        for line in panel.get_lines()[:2]:
            np.testing.assert_allclose(line.get_xydata(), list(zip([0, 2], expected)))
    _, ax = plt.subplots()
    assert plot_monitor(samples, ax=ax) is ax  # as the other plots
    assert isinstance(plot_monitor(samples), type(plot_steps([3, 4])))
    with pytest.raises(ValueError, match="no samples"):
        plot_monitor([])


def test_curves_are_told_apart_by_colour_and_without_it(solution):
    names = [f"curve {number}" for number in range(4)]
    works = [Work(name, 1e-2, 1e-2 / (i + 1), 3, 1, 1) for name in names for i in range(2)]
    errors = [GradientError(name, 10.0**-i, 1, 0.1, 1, 1) for name in names for i in range(2)]
    for ax in (
        plot_convergence(dict.fromkeys(names, solution)),
        plot_steps(dict.fromkeys(names, solution)),
        plot_work_precision(works),
        plot_gradient_error(errors),
    ):
        lines = [line for line in ax.get_lines() if line.get_label() in names]
        assert [line.get_color() for line in lines] == list(COLOURS[:4])
        assert len({line.get_linestyle() for line in lines}) == 4


def test_steps_picture_ends_at_all_rows(solution):
    fast = solve(affine, torch.zeros(3, 1, dtype=torch.float64), solver=Anderson(), rtol=1e-6)
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
    (hollow,) = (line for line in ax.get_lines() if line.get_markerfacecolor() == "white")
    assert hollow.get_xydata().tolist() == [[2e-3, 9]]
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


def test_what_holds_no_number_is_drawn_as_such(tmp_path):
    nothing = solve(lambda z: z * float("nan"), torch.ones(3, 2), solver=Picard())
    empty = solve(lambda z: z, torch.zeros(0, 1), solver=Picard())
    exact = solve(lambda z: z, torch.ones(2, 1), solver=Picard())
    nan = float("nan")
    pictures = [plot_convergence(one, worst=2) for one in (nothing, empty, exact)]
    pictures += [plot_convergence(nothing, seconds=1.0), plot_convergence(nothing, evaluations=True)]
    pictures += [plot_work_precision([Work("a", 1e-2, nan, 4.0, 0.1, 0.0)])]
    pictures += [plot_gradient_error([GradientError("a", 1e-2, nan, nan, 7.0, 0.1)])]
    for number, ax in enumerate(pictures):
        ax.figure.savefig(tmp_path / f"{number}.png")
        assert "no finite number above 0" in [text.get_text() for text in ax.texts]
        plt.close(ax.figure)
    label = plot_eigenvalues([0.5, nan]).get_lines()[1].get_label()
    assert label == "eigenvalues: largest modulus 0.5, 0 of 1 outside"


def test_plain_data_are_drawn_too():
    ax = plot_convergence({"one": [1.0, 0.1, 0.01], "rows": np.array([[1, 2], [0.5, 1], [0.25, np.nan]])}, worst=1)
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_allclose(lines["one"], [1, 0.1, 0.01])
    np.testing.assert_allclose(lines["rows"], [1.5, 0.75, 0.625])
    with pytest.raises(ValueError, match="needs a Solution"):
        plot_convergence([1.0, 0.5], evaluations=True)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 1\)"):
        plot_convergence([[[1.0]]])
    assert plot_steps([3, 1, 4]).get_lines()[0].get_xdata().tolist() == [1, 1, 3, 4]
    work = Work("a", 1e-2, 5e-3, 4.0, 0.1, 1.0)
    assert plot_work_precision([work.to_dict()]).get_lines()[0].get_xydata().tolist() == [[5e-3, 4]]
    error = GradientError("a", 1e-2, 0.9, 0.3, 7.0, 0.1)
    assert plot_gradient_error([error.to_dict()]).get_lines()[0].get_xydata().tolist() == [[1e-2, 0.3]]
    sample = Sample(3, "a", 1e-5, 1.0, 5.0, 7.0, 0.5, 0.9)
    assert plot_monitor([sample.to_dict()]).child_axes[0].get_lines()[0].get_xydata().tolist() == [[3, 1e-5]]
    path = plot_trajectories(np.arange(12.0).reshape(3, 2, 2))
    np.testing.assert_allclose(path.get_lines()[0].get_xydata(), [[0, 1], [4, 5], [8, 9]])


# --- whatever the numbers lie in ---------------------------------------------------------------------------------


class OnAnotherDevice(torch.Tensor):
    """What NumPy cannot read before it is on the processor, as a tensor on a GPU."""

    def cpu(self):
        return super().cpu().as_subclass(torch.Tensor)

    def numpy(self, **options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *args, **options):
        return self.numpy()

    def __float__(self):
        return float(self.cpu())


KINDS = {
    "here": lambda values: values,
    "elsewhere": lambda values: values.as_subclass(OnAnotherDevice),
    "with a graph": lambda values: 1 * values.requires_grad_(),
    "half": lambda values: values.bfloat16() if values.is_floating_point() else values,
    "a list": lambda values: list(values.as_subclass(OnAnotherDevice)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_takes_tensors_as_they_come(kind):
    made = KINDS[kind]
    trace = torch.tensor([[1.0, 2.0], [0.5, 1.0], [0.25, 0.5]])
    median = plot_convergence(made(trace.clone()), rtol=made(torch.tensor([0.1]))[0], worst=1).get_lines()[0]
    np.testing.assert_allclose(median.get_ydata(), [1.5, 0.75, 0.375])
    plot_convergence({"one": made(trace.clone())}, seconds={"one": made(torch.tensor([2.0]))[0]})
    steps = made(torch.tensor([2.0, 3.0]))
    plot_steps(steps)
    plot_steps({"one": steps}, histogram=True)
    values = torch.tensor([[0.5 + 0.5j, 0.5 - 0.5j]])
    line = plot_eigenvalues(made(values) if kind != "half" else values).get_lines()[1]
    np.testing.assert_allclose(line.get_xydata(), [[0.5, 0.5], [0.5, -0.5]])
    if kind != "a list":  # whose entries are states
        path = plot_trajectories(made(torch.tensor([[[0.0, 1.0]], [[4.0, 5.0]]])))
        np.testing.assert_allclose(path.get_lines()[0].get_xydata(), [[0, 1], [4, 5]])
    one = made(torch.tensor([0.5]))[0]
    plot_work_precision([Work("one", one, one, one, one, one)])
    plot_gradient_error([GradientError("one", one, one, one, one, one)])
    plot_monitor([Sample(0, "one", one, one, one, one, one, one)])
