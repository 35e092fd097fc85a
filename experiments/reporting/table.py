"""The table of a comparison: the same columns in the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .comparison import Comparison, Row

MARKS = {"better": "▲ ", "worse": "▼ "}
"""Marks of decided differences."""


READINGS = {
    "explicit": "layers one after the other",
    "implicit": "a solve in each layer",
    "equilibrium": "one layer, solved for its fixed point",
    "parallel": "all layers at once",
    "looped": "one layer, repeated",
    "own": "a network of yours",
}
"""What the readings are, in words."""


def _mean(figure: str, form: str, scale: float = 1.0) -> Callable[[Row], str]:
    """How a row shows the mean of a figure; a dash if it is unknown."""
    return lambda row: format(scale * row.mean(figure), form) if row.values(figure) else "–"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".") if value >= 1e-3 else f"{value:.2g}"


def _evaluations(row: Row) -> str:
    if not row.mean("forward_evaluations"):
        return "–"
    return " / ".join(_mean(f"{direction}_evaluations", ".1f")(row) for direction in ("forward", "backward"))


def _rate(row: Row) -> str:
    tried = row.search
    if tried is None or tried.bracketed:
        return f"{row.learning_rate:.2g}"
    return f"{'<' if row.learning_rate == min(tried.scores) else '>'} {row.learning_rate:.2g}"


def _latency(batch: int) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        seconds = row.latency(batch)
        return "–" if math.isnan(seconds) else _digits(1e3 * seconds)

    return show


def columns(comparison: Comparison) -> dict[str, tuple[str, Callable[[Row], str]]]:
    """Heading → (what it means, how a row shows it)."""
    goal = comparison.task.goal
    baseline = comparison.baseline or "its baseline"

    def score(row: Row) -> str:
        count = len(row.values("score"))
        spread = f" ± {goal.show(row.deviation('score'))}" if count > 1 else ""
        return goal.show(row.mean("score")) + spread if count else "–"

    def difference(row: Row) -> str:
        found, kind = comparison.difference(row), comparison.judged(row)
        if found is None or not math.isfinite(found.high - found.low):
            return "baseline" if kind == "baseline" else "–"  # the interval of a single seed would say nothing
        mean, low, high = (("+" if value > 0 else "") + goal.show(value) for value in vars(found).values())
        shown = f"{MARKS.get(kind, '')}{mean} [{low}, {high}]"
        return shown if comparison.baseline else f"{shown} to {row.contestant.baseline}"

    readings = {row.contestant.reading for row in comparison.rows}
    rates = "learning rate, the largest of the schedule"
    if any(row.search for row in comparison.rows):
        rates += "; < or > marks a best rate that is the lowest or highest tried"
    table: dict[str, tuple[str, Callable[[Row], str]]] = {
        "network": ("", lambda row: row.name),
        goal.heading: ("on the test part, mean ± standard deviation over the seeds", score),
        f"– {baseline}": (
            f"score minus that of {baseline}, paired by seed: mean and 95 % interval (Student's t); "
            "▲ better, ▼ worse; an interval that contains 0 decides nothing",
            difference,
        ),
        "reading": (
            "; ".join(f"{reading}: {words}" for reading, words in READINGS.items() if reading in readings),
            lambda row: row.contestant.reading,
        ),
        "parameters": ("trainable scalars", lambda row: f"{row.parameters:,}"),
        "MFLOPs": (
            "matmul and convolution FLOPs per sample in a forward pass, in millions, including the solver's own",
            _mean("flops", ".3g", 1e-6),
        ),
        "margin": (
            "median distance of test points to the decision boundary, to first order; negative for wrong answers",
            _mean("margin", ".3f"),
        ),
        "evaluations": ("of the cells per row, forward / backward, all solves together", _evaluations),
        "converged %": (
            "test rows in which every solve met the tolerance",
            lambda row: _mean("converged", ".1f", 100)(row) if row.mean("forward_evaluations") else "–",
        ),
        "rate": (rates, lambda row: _rate(row) if row.trained else "–"),
        "s / epoch": (
            "median seconds of training",
            lambda row: _digits(row.seconds_per_epoch()) if row.trained else "–",
        ),
        "ms at 1": ("median latency of a forward pass, batch 1", _latency(1)),
        "ms at 256": ("the same, batch 256", _latency(256)),
        "saved MiB": (
            f"activations that a training batch of {comparison.task.batch} keeps for its backward pass",
            _mean("saved_bytes", ".2f", 2**-20),
        ),
    }
    if not any(row.values("margin") for row in comparison.rows):
        del table["margin"]
    return table


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError being handled: the command line deals with it


def terminal(*, quiet: bool = False) -> Console:
    """The console that a run prints to, unless it is quiet."""
    console = _Terminal(quiet=quiet)
    return console if console.is_terminal else _Terminal(width=200, quiet=quiet)  # a log has no edge to wrap at


def print_table(comparison: Comparison, console: Console) -> None:
    """Print the verdict, then the table in as many parts as the terminal's width requires, each with the names."""
    console.print(f"\n{comparison.verdict()}", highlight=False, markup=False)
    first, *rest = columns(comparison)
    part = [first]
    for heading in rest:
        if len(part) > 1 and _width(_table(comparison, [*part, heading])) > console.width:
            console.print(_table(comparison, part))
            part = [first]
        part.append(heading)
    console.print(_table(comparison, part))


def table_text(comparison: Comparison) -> str:
    """The whole table as text, however wide."""
    console = Console(width=10_000, color_system=None)
    with console.capture() as captured:
        console.print(_table(comparison, list(columns(comparison))))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def table_markdown(comparison: Comparison) -> str:
    """Verdict, table and how they were made, in Markdown: for a README or a notebook."""
    shown, settings = columns(comparison), comparison.settings
    lines = [[show(row) for _, show in shown.values()] for row in comparison.ranked]
    lines += [[name, *["–"] * (len(shown) - 1)] for name in comparison.missing]
    left = ("network", "reading")
    parts = [f"# {comparison.task.name}", comparison.task.description, comparison.verdict()]
    rows = [list(shown), ["---" if heading in left else "--:" for heading in shown], *lines]
    table = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)
    meanings = "\n".join(f"* {_cell(heading)}: {meaning}." for heading, (meaning, _) in shown.items() if meaning)
    machine = settings["machine"]
    versions = ", ".join(f"{package} {number}" for package, number in settings["versions"].items())
    made = (
        f"`{settings['command']}`: {settings['terms']}, {settings['epochs']} epochs, {len(settings['seeds'])} seeds, "
        f"{settings['training']}, "
        f"{settings['seconds']:.0f} seconds on {machine['device']} (cores: {machine['cores']}, threads: "
        f"{machine['threads']}), {versions}. Times depend on that machine and its load: compare them within this "
        "table only."
    )
    return "\n\n".join(part for part in (*parts, table, meanings, made) if part) + "\n"


def _cell(text: str) -> str:
    """The text escaped for a Markdown table, and kept from breaking between the numbers of an interval."""
    text = text.replace(", ", ",\u00a0").replace(" ± ", "\u00a0±\u00a0")
    for sign in "\\`*_<|[":
        text = text.replace(sign, "\\" + sign)
    return text


def _width(table: Table) -> int:
    """Columns that the table needs, whatever the terminal has."""
    return Console(width=10_000).measure(table).maximum


def _table(comparison: Comparison, headings: list[str]) -> Table:
    table, shown = Table(title=Text(comparison.task.name), box=box.SIMPLE_HEAD), columns(comparison)
    for heading in headings:
        table.add_column(Text(heading), justify="left" if heading in ("network", "reading") else "right", no_wrap=True)
    for row in comparison.ranked:
        table.add_row(*(Text(shown[heading][1](row)) for heading in headings))
    for name in comparison.missing:
        table.add_row(Text(name), *["–"] * (len(headings) - 1))
    return table
