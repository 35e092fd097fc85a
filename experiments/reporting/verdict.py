"""The verdict in words: which networks differ from the baseline, at what cost, and whether the seeds suffice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .comparison import Comparison, Row

ENOUGH = 5
"""Seeds beyond which the interval hardly narrows: Student's factor is 2.8, against 12.7 for two seeds."""
NAMED = 3
"""Networks of a kind that are named; the rest are counted."""


def verdict(comparison: Comparison) -> list[str]:
    """Some sentences, the most important first."""
    if not comparison.rows:
        return ["Nothing was measured."]
    seeds = max(len(row.runs) for row in comparison.rows)
    if seeds < 2:
        return [
            f"One seed says nothing about differences: the table shows one result of each network, and a second seed "
            f"may reverse the order. Take {ENOUGH} seeds or more."
        ]
    baselines = dict.fromkeys(row.contestant.baseline for row in comparison.rows)
    sentences = [sentence for name in baselines for sentence in _against(comparison, name or "")]
    if comparison.settings.get("search") is False:
        sentences.append("Learning rates were not searched for: at others, the order may differ.")
    open_ended = [row.name for row in comparison.ranked if row.search is not None and not row.search.bracketed]
    if open_ended:
        best = "The best learning rate tried" + (
            f" for {_listed(open_ended)}" if len(open_ended) < len(comparison.rows) else ""
        )
        sentences.append(f"{best} was the lowest or highest of the search: one beyond it may do better.")
    intervals = sum(comparison.difference(row) is not None for row in comparison.rows)
    if seeds < ENOUGH:
        sentences.append(f"{seeds} seeds decide large differences only: {ENOUGH} or more make the intervals narrower.")
    elif intervals >= 10:
        chance = f"Of {intervals} such intervals, about {max(1, round(0.05 * intervals))} will exclude 0 by chance"
        sentences.append(f"{chance}: repeat a narrow decision with other seeds.")
    return sentences


def _against(comparison: Comparison, name: str) -> list[str]:
    """Sentences on the networks that are compared with this baseline."""
    known = [
        (row, difference)
        for row in comparison.ranked
        if row.contestant.baseline == name and (difference := comparison.difference(row)) is not None
    ]
    baseline = next((row for row in comparison.rows if row.name == name), None)
    if not known or baseline is None:
        others = [row for row in comparison.rows if row.contestant.baseline == name and row.name != name]
        return [f"The baseline {name} has no scores: nothing is compared with it."] if others else []
    goal = comparison.task.goal
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "undecided": [], "unknown": []}
    rows: dict[str, list[Row]] = {kind: [] for kind in kinds}
    for row, difference in known:
        kind = comparison.judged(row)
        mean, low, high = (("+" if value > 0 else "") + goal.show(value) for value in vars(difference).values())
        kinds[kind].append(f"{row.name} ({mean} [{low}, {high}])" if kind in ("better", "worse") else row.name)
        rows[kind].append(row)
    reference = f"{name} ({goal.show(baseline.mean('score'))}{f' {goal.unit}' if goal.unit else ''})"
    beyond = f"than {reference} by more than the 95 % interval"
    sentences = [
        f"{kind.capitalize()} {beyond}: {_listed(kinds[kind])}." for kind in ("better", "worse") if kinds[kind]
    ]
    count = len(kinds["undecided"])
    if sentences and count:
        sentences.append(f"Not distinguishable from {name}: {_listed(kinds['undecided'])}.")
    elif count:
        only = f"{'Neither' if count == 2 else 'None'} of the {count} others differs"
        only = f"{kinds['undecided'][0]} does not differ" if count == 1 else only
        sentences.append(f"{only} from {reference} by more than the 95 % interval.")
    if kinds["unknown"]:
        sentences.append(f"Without a finite score: {_listed(kinds['unknown'])}.")
    shown = (rows["better"] or rows["undecided"] or rows["worse"])[:NAMED]
    return sentences + _costs(shown, baseline)


def _costs(rows: Sequence[Row], baseline: Row) -> list[str]:
    """A sentence on what these networks cost, relative to the baseline."""
    told = []
    for row in rows:
        parts = [
            f"{_ratio(here / there)} {what}"
            for what, here, there in (
                ("the time", _seconds(row), _seconds(baseline)),
                ("the memory", row.mean("saved_bytes"), baseline.mean("saved_bytes")),
            )
            if here > 0 and there > 0
        ]
        if row.mean("forward_evaluations") > 0:
            parts.append(f"{row.mean('forward_evaluations'):.0f} evaluations of its cells per row")
        if parts:
            told.append(f"{row.name} {', '.join(parts)}")
    return [f"Training on this machine, relative to {baseline.name}: {'; '.join(told)}."] if told else []


def _seconds(row: Row) -> float:
    return row.seconds_per_epoch() if row.trained else math.nan


def _ratio(value: float) -> str:
    return f"{value:.2g} ×" if value < 10 else f"{value:.0f} ×"


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    if more <= 1:
        return ", ".join(names)
    return f"{', '.join(names[:NAMED])} and {more} others"
