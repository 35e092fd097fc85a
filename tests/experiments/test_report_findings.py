"""What the diagnosis finds in trained networks, and how a page shows it."""

import json
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.contestants.own import known
from experiments.failures import Failures
from experiments.measuring.diagnosis import Diagnosis, diagnosed
from experiments.measuring.measure import measure
from experiments.reporting.comparison import Comparison, Row, Run
from experiments.reporting.report import page
from experiments.tasks.make import make_task
from experiments.training.train import Training
from implicit import Equilibrium
from implicit.diagnostics import Finding
from solvers import ConvergenceError

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def comparison():
    """Three rows around untrained networks, none of them diagnosed."""
    task = make_task("rings")
    rows = []
    for name in ("gd", "pgd-implicit", "pgd-deq"):
        contestant = known("rings", task)[name]
        torch.manual_seed(0)
        network = contestant.build(4)
        run = Run(0, Training([], []), measure(network, replace(task, measured=8), "cpu", Failures()), network)
        rows.append(Row(name, contestant, 1, 4, [run], 1e-2))
    settings = {
        "command": "implicit compare rings",
        "terms": "equal parameter counts",
        "training": "AdamW, batches of 64",
        "epochs": 1,
        "seeds": [0],
        "seconds": 1.0,
        "versions": {"python": "3"},
        "machine": {"device": "cpu", "system": "Linux", "cores": 1, "threads": 1},
    }
    return Comparison(task, rows, settings)


class Expanding(nn.Module):
    """`z ↦ −1.5 z + tanh(x)`: a fixed point that plain iteration runs away from."""

    def __init__(self, exploding=False):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(-1.5))
        self.exploding = exploding

    def forward(self, z, x):
        return self.factor * z + torch.tanh(x) / (0 if self.exploding else 1)


def rendered(comparison, tmp_path, **diagnoses):
    """The page with these diagnoses of its rows, as a file."""
    rows = []
    for row in comparison.rows:
        run = replace(row.runs[0], diagnosis=diagnoses.get(row.name.replace("-", "_")))
        rows.append(replace(row, runs=[run]))
    path = tmp_path / "page.html"
    path.write_text(page(replace(comparison, rows=rows), []), encoding="utf-8")
    return path


def section(tab):
    """The text of what the diagnosis found."""
    text = tab.locator("main").inner_text()
    return text[text.index("What the diagnosis found") : text.index("The figures")]


def test_a_planted_fault_is_found_and_shown_with_its_remedy(comparison, opened, tmp_path):
    found = diagnosed(nn.Sequential(nn.Linear(2, 3), Equilibrium(Expanding())), torch.randn(20, 2), Failures())
    assert found.rows == 16
    assert found.layers == list(found.eigenvalues) == ["1"]
    torch.testing.assert_close(found.eigenvalues["1"], torch.full((4, 3), -1.5 + 0j, dtype=torch.complex128))
    (finding,) = found.findings
    assert finding.name == "spectral radius above 1"
    healthy = diagnosed(comparison.rows[1].runs[0].network, torch.randn(20, 2), Failures())
    assert healthy.healthy
    assert len(healthy.layers) == 6
    assert list(healthy.eigenvalues) == [healthy.layers[place] for place in (0, 2, 5)]
    tab = opened(rendered(comparison, tmp_path, pgd_deq=found, pgd_implicit=healthy), PHONE)
    text = section(tab)
    assert tab.locator("h3").all_text_contents() == ["pgd-deq"]
    for words in (
        "Spectral radius above 1",
        finding.evidence,
        finding.remedy,
        "Nothing was found in pgd-implicit (6 la",
    ):
        assert words in text
    assert "gd: no equilibrium is solved there" in text
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_same_finding_in_several_layers_is_said_once(comparison, opened, tmp_path):
    def finding(layer, remedy="normalise"):
        return Finding("rows coupled", f"by 0.{layer}", remedy, layer)

    layers = [str(i) for i in range(1, 6)]
    one = Diagnosis([finding("1"), finding("3")], layers, 16, 1.0)
    several = Diagnosis([finding("2", "lower rtol to 1e-5"), finding("4", "lower rtol to 1e-6")], layers, 16, 1.0)
    text = section(opened(rendered(comparison, tmp_path, pgd_implicit=one, pgd_deq=several), DESK))
    first, second = text.split("pgd-deq\n")
    assert first.count("Rows coupled, in 2 of 5 layers") == first.count("What to do: normalise.") == 1
    assert "Layer 1 (1): by 0.1." in first
    assert "Layer 3 (3): by 0.3." in first
    assert "Layer 4 (4): by 0.4. What to do: lower rtol to 1e-6." in second


def test_names_are_text_not_markup(comparison, opened, tmp_path):
    odd = Diagnosis([Finding("<b>x", "1 < 2 & 3", "<script>alert(1)</script>")], ["<i>"], 16, 1.0)
    tab = opened(rendered(comparison, tmp_path, pgd_deq=odd), DESK)
    assert "<script>alert(1)</script>" in section(tab)
    assert tab.locator("script, main b").count() == 0


def test_a_diagnosis_that_ends_early_says_so_and_loses_nothing(comparison, opened, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ConvergenceError("no reference\nand more")

    network = comparison.rows[2].runs[0].network
    monkeypatch.setattr("experiments.measuring.diagnosis.diagnose", fail)
    found = diagnosed(network, torch.randn(3, 2), Failures())
    assert found.failures == ["the diagnosis ended with ConvergenceError: no reference"]
    assert found.rows == 3
    assert found.eigenvalues
    text = section(opened(rendered(comparison, tmp_path, pgd_deq=found), DESK))
    assert "Not known: the diagnosis ended with ConvergenceError: no reference." in text
    monkeypatch.setattr("experiments.measuring.diagnosis.eigenvalues", fail)
    assert "the eigenvalues of 1.equilibrium" in diagnosed(network, torch.randn(3, 2), Failures()).failures[1]
    monkeypatch.setattr("experiments.measuring.diagnosis.diagnose", lambda *arguments: 1 / 0)
    failures = Failures()
    found = diagnosed(network, torch.randn(3, 2), failures)
    assert found.failures[0] == "the diagnosis ended with ZeroDivisionError: division by zero"
    # a fault of the toolkit is a failure of the run; that an equation has no solution within reach is none
    assert [failure.what for failure in failures.found] == ["the diagnosis"]


def test_of_large_pictures_fewer_are_looked_at():
    found = diagnosed(Equilibrium(Expanding()), torch.randn(16, 3, 19, 19), Failures())
    assert found.rows == 4
    (values,) = found.eigenvalues.values()
    assert values.shape == (1, 6)


def test_rows_that_are_not_finite_are_found_and_have_no_eigenvalues():
    found = diagnosed(Equilibrium(Expanding(exploding=True)), torch.randn(5, 2), Failures())
    assert [finding.name for finding in found.findings] == ["rows that are not finite"]
    assert not found.eigenvalues
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_page_without_equilibria_says_that_there_was_nothing_to_diagnose(comparison, opened, tmp_path):
    assert "there was nothing to diagnose" in section(opened(rendered(comparison, tmp_path), DESK))


def test_a_network_that_holds_what_cannot_be_copied_is_looked_at():
    class Locked(Expanding):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    found = diagnosed(nn.Sequential(nn.Linear(2, 3), Equilibrium(Locked())), torch.randn(20, 2), Failures())
    plain = diagnosed(nn.Sequential(nn.Linear(2, 3), Equilibrium(Expanding())), torch.randn(20, 2), Failures())
    assert [finding.name for finding in found.findings] == [finding.name for finding in plain.findings]
    assert found.failures == []
    assert found.layers == ["1"]
