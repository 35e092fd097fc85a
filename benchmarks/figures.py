"""One figure for each benchmark, drawn from its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .gpu_figure import gpu
from .panels import bars, curves, empty, number, panels
from .report import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tables = Mapping[str, Table]
Curves = dict[str, dict[float, float]]
"""Values by name, then by the horizontal axis."""
Spread = tuple[float, float, float]
"""Median, least, largest."""


def solvers(tables: Tables) -> Figure:
    """Growth with state and batch, evaluations beside all peers, and beside deepinv's."""
    figure, (state, batch, work, proximal) = panels(2, 2)
    if not empty(state, table := tables.get("growth_state")):
        assert table is not None
        curves(state, _by_side(table, "solver", "state", "{side} / f"), paired=True)
        state.set(xlabel="entries of the state", ylabel="time of a step ÷ time of f")
        state.set_title("A step of a solver, f elementwise, batch 1")
    if not empty(batch, table := tables.get("growth_batch")):
        assert table is not None
        curves(batch, _by_side(table, "solver", "batch", "{side} ms"), paired=True)
        batch.set(xlabel="batch", ylabel="ms of a solve", title="A solve to 1e-4, dense tanh cell of width 256")
    if not empty(work, table := tables.get("evaluations_1e-8_summary")):
        assert table is not None
        found = {
            f"{_whose(row['solver'])} ({row['failed']} of {row['of']} failed)": {"": _point(row["geometric mean"])}
            for row in sorted(table.rows, key=lambda row: number(row["geometric mean"]))
        }
        bars(work, found)
        work.set(xlabel="evaluations ÷ fewest of ours, geometric mean")
        work.set_title("Classical problems to 1e-8, where not failed")
    if not empty(proximal, table := tables.get("proximal")):
        assert table is not None
        bars(
            proximal,
            {
                str(row["algorithm"]): {
                    side: _point(row[f"1e-8 {side}"]) for side in ("ours", "deepinv") if f"1e-8 {side}" in row
                }
                for row in table.rows
            },
            line=None,
        )
        proximal.set(xlabel="evaluations of gradient and prox", title="Least squares with an l1 penalty, to 1e-8")
    return figure


def gradients(tables: Tables) -> Figure:
    """Training steps, products to an equal error, the unit of the loss, networks beside deepinv's."""
    figure, (step, products, scale, proximal) = panels(2, 2)
    if not empty(step, table := tables.get("training_step")):
        assert table is not None
        groups: dict[str, dict[str, Spread]] = {}
        for row in table.rows:
            if row["cell"] != "geometric mean" and "ratio" in row:
                groups.setdefault(str(row["step"]), {})[str(row["cell"])] = _spread(row)
        bars(step, groups)
        step.set(xlabel="seconds ÷ torchdeq's fastest", title="A forward and backward pass")
    if not empty(products, table := tables.get("products")):
        assert table is not None
        tight = [row for row in table.rows if row["error"] == "1e-06" and row.get("GMRES() / this") is not None]
        bars(
            products,
            {
                f"{row['backward solve']} ({row['of']})": {"": _point(1 / number(row["GMRES() / this"]))}
                for row in tight
            },
        )
        products.set(xlabel="products ÷ those of GMRES(), geometric mean")
        products.set_title("Gradient to 1e-6 (on so many cells)")
    if not empty(scale, table := tables.get("loss_scale")):
        assert table is not None
        curves(
            scale,
            {
                str(row["gradient"]): {
                    float(key.removeprefix("loss × ")): number(value)
                    for key, value in row.items()
                    if key.startswith("loss × ")
                }
                for row in table.rows
            },
            ticks=False,
        )
        scale.set(xlabel="factor on the loss", ylabel="relative error of the gradient", title="The unit of the loss")
    if not empty(proximal, table := tables.get("proximal_seconds")):
        assert table is not None
        groups = {}
        for row in table.rows:
            if "ratio" in row:
                groups.setdefault(str(row["network"]), {})[str(row["of"])] = _spread(row)
        bars(proximal, groups)
        proximal.set(xlabel="seconds ÷ deepinv's", title="PGD and FISTA as networks")
    return figure


def parallel(tables: Tables) -> Figure:
    """Seconds over the serial network's against depth, and branches batched over a loop."""
    figure, axes = panels(2, 2)
    table = tables.get("depth")
    for ax, kind in zip(axes, ("inference", "training step")):
        if empty(ax, table):
            continue
        assert table is not None
        narrow = min(number(row["width"]) for row in table.rows)
        curves(ax, _against_depth(table, kind, narrow))
        ax.set(xlabel="layers", ylabel="seconds ÷ serial", title=f"{kind.capitalize()}, width {narrow:.0f}, batch 1")
    if not empty(axes[2], table):
        assert table is not None
        wide = max(number(row["width"]) for row in table.rows)
        curves(axes[2], _against_depth(table, "inference", wide))
        batch = max(number(row["batch"]) for row in table.rows)
        axes[2].set(xlabel="layers", ylabel="seconds ÷ serial", title=f"Inference, width {wide:.0f}, batch {batch:.0f}")
    if not empty(axes[3], table := tables.get("branches")):
        assert table is not None
        found = {
            f"batch {row['batch']}, {row['tokens']} tokens,\n{row['branches']} branches": {
                "": (number(row["batched ÷ loop"]), number(row["least"]), number(row["largest"]))
            }
            for row in table.rows
        }
        bars(axes[3], found)
        axes[3].set(xlabel="seconds batched ÷ in a loop", title="Para-Former's branches")
    return figure


def memory(tables: Tables) -> Figure:
    """Peak memory against steps."""
    figure, (solver, gradient) = panels(1, 2, width=6.8)
    for ax, name, key in ((solver, "solvers", "solver"), (gradient, "gradients", "gradient, solver")):
        if empty(ax, table := tables.get(name)):
            continue
        assert table is not None
        found: Curves = {
            " ".join(str(row[part]) for part in (key, "by") if part in row): {
                float(column.removesuffix(" steps")): number(value)
                for column, value in row.items()
                if column.endswith(" steps")
            }
            for row in table.rows
            if row.get("by") != "ratio"
        }
        curves(ax, found, paired=name == "solvers")
        ax.set(xlabel="steps", ylabel="peak additional MiB")
    solver.set_title("A solve")
    gradient.set_title("A forward and backward pass")
    return figure


def training(tables: Tables) -> Figure:
    """Accuracy against seconds, and the work of a step."""
    figure, (accuracy, work) = panels(1, 2, width=6.8)
    scores, seconds = tables["accuracy"].rows, tables["seconds"].rows
    found: Curves = {}
    for name in (column for column in scores[0] if column != "epoch"):
        spent, found[name] = 0.0, {}
        for score, time in zip(scores, seconds):
            spent += number(time[name])
            found[name][spent] = number(score[name])
    curves(accuracy, found, ticks=False)
    accuracy.set(xscale="linear", yscale="linear", xlabel="seconds of training", ylabel="test accuracy, %")
    accuracy.set_title("scikit-learn's digits, a mark an epoch")
    rows = tables["training"].rows
    kinds = {"evaluations": "evaluations a step", "of single rows, a row": "rows a row", "products": "products a step"}
    bars(
        work,
        {str(row["trained with"]): {kind: _point(row[key]) for kind, key in kinds.items()} for row in rows},
        line=None,
    )
    work.set(xlabel="a training step", title="Work")
    return figure


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    "solvers": solvers,
    "gradients": gradients,
    "parallel": parallel,
    "memory": memory,
    "training": training,
    "gpu": gpu,
}
"""The figure of each benchmark."""


def _whose(solver: object) -> str:
    """The solver's name with its owner; a peer's name begins with its package already."""
    return str(solver) if " " in str(solver) else f"our {solver}"


def _by_side(table: Table, curve: str, axis: str, value: str) -> Curves:
    found: Curves = {}
    for name in dict.fromkeys(row[curve] for row in table.rows):
        for side in ("ours", "torchdeq"):
            key = value.format(side=side)
            rows = [row for row in table.rows if row[curve] == name and key in row]
            if rows:
                found[f"{name}, {side}"] = {number(row[axis]): number(row[key]) for row in rows}
    return found


def _against_depth(table: Table, kind: str, width: float) -> Curves:
    found: Curves = {}
    for row in table.rows:
        if row["width"] == width and row["network"] != "serial":
            found.setdefault(str(row["network"]), {})[number(row["layers"])] = number(row[f"{kind} ÷ serial"])
    return found


def _point(value: object) -> Spread:
    one = float(value) if isinstance(value, (int, float)) else float("nan")
    return one, one, one


def _spread(row: Mapping[str, object]) -> Spread:
    one, least, largest = (_point(row[key])[0] for key in ("ratio", "min", "max"))
    return one, least, largest
