"""Results of the diagnostics and records as a notebook shows them."""

import json
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

import implicit
from implicit import Equilibrium
from implicit.diagnostics import (
    Finding,
    Table,
    compare_solvers,
    diagnose,
    error_bound,
    path_independence,
    tails,
)
from solvers import Picard


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, z, x):
        return torch.tanh(0.5 * self.inner(z) + x)


def page_of(thing):
    return ET.fromstring(f"<div>{thing._repr_html_()}</div>")


def cells(page):
    return [["".join(cell.itertext()) for cell in line] for line in page.find("table/tbody")]


@pytest.fixture
def layer():
    return Equilibrium(Cell())


def test_a_log_is_a_line_a_solve_with_its_curve(layer):
    with implicit.record() as log:
        layer(torch.randn(5, 4)).sum().backward()
    page = page_of(log)
    lines = cells(page)
    assert [line[:4] for line in lines] == [
        ["Equilibrium(Cell)", "forward", "5", "5"],
        ["Equilibrium(Cell)", "backward", "5", "5"],
    ]
    assert int(lines[0][5]) == log.forward[0].solution.evaluations.sum()
    assert len(page.findall(".//svg")) == 2
    assert repr(log) == "Log(1 forward and 1 backward solves: 10 of 10 rows converged)"
    numbers = json.loads(json.dumps(log.to_dict()))
    assert numbers["direction"] == ["forward", "backward"]
    assert numbers["residual"][0] == pytest.approx(log.forward[0].solution.residual.max().item())
    assert page_of(log.forward[0]).find("p").text == "Equilibrium(Cell)"
    with implicit.record() as empty:
        pass
    assert cells(page_of(empty)) == []
    assert empty.to_dict()["layer"] == []


def test_findings_are_a_table_and_none_is_said(layer):
    findings = diagnose(layer, torch.tensor([[float("nan")] * 4, [0.0] * 4]))
    assert cells(page_of(findings))[0][0] == "rows that are not finite"
    assert page_of(diagnose(layer, torch.randn(3, 4))).find("p").text == "none"
    odd = Table([Finding("<b>", "a & b", "c")])
    assert cells(page_of(odd))[0][:2] == ["<b>", "a & b"]


def test_rows_of_comparisons_are_tables():
    rows = compare_solvers(torch.cos, torch.zeros(3, 1), solvers={"plain": Picard()}, rtols=[1e-2, 1e-3])
    page = page_of(rows)
    assert [cell.text for cell in page.find("table/thead/tr")][:2] == ["name", "rtol"]
    assert [line[:2] for line in cells(page)] == [["plain", "0.01"], ["plain", "0.001"]]


def test_a_printed_table_has_columns_of_three_digits():
    rows = compare_solvers(torch.cos, torch.zeros(3, 1), solvers={"plain": Picard()}, rtols=[1e-2, 1e-3])
    heading, first, second = str(rows).splitlines()
    assert heading.split()[:2] == ["name", "rtol"]
    assert [line.split()[:2] for line in (first, second)] == [["plain", "0.01"], ["plain", "0.001"]]
    assert len(heading) == len(first) == len(second)
    assert max(len(cell) for cell in first.split()) < 10  # repr has every digit
    assert str(Table()) == "[]"
    wide = Table([Finding("a name", "evidence " * 12, "a remedy")] * 30)
    lines = str(wide).splitlines()
    assert lines[0] == str(wide[0])
    assert lines[-1] == "… and 10 more rows"


def test_bounds_paths_and_tails_have_plain_numbers_and_a_page(layer):
    x = torch.randn(6, 4)
    z = layer.solve(x).value
    bound = error_bound(layer.cell, z, (x,))
    numbers = json.loads(json.dumps(bound.to_dict()))
    assert numbers["distance"] == bound.value.tolist()
    assert set(numbers["certified"]) == {False}
    least, _, largest = (float(text) for text in cells(page_of(bound))[0][1:])
    assert least == pytest.approx(bound.value.min().item(), rel=1e-2)
    assert largest == pytest.approx(bound.value.max().item(), rel=1e-2)
    assert "estimate: the length" in page_of(bound).find("p").text
    paths = path_independence(layer, x, starts=2)
    assert json.loads(json.dumps(paths.to_dict()))["share_converged"] == [1.0] * 6
    assert [line[0] for line in cells(page_of(paths))] == ["alignment", "spread", "share converged"]
    ends = tails(layer.solve(x))
    assert len(cells(page_of(ends))) == 6
    assert error_bound(lambda z: z + 1, z)._repr_html_().count("nan") == 3  # nothing is known


def test_long_tables_are_cut_and_single_lines_have_a_page():
    finding = Finding("a", "b", "c")
    many = Table([finding] * 500)
    assert len(repr(many)) < 3000
    assert "… and 480 more rows" in repr(many)
    assert len(cells(page_of(many))) == 20
    assert cells(page_of(finding)) == [["a", "b", "c", ""]]
    with implicit.record() as log:
        Equilibrium(Cell())(torch.randn(2, 4))
    assert log.forward[0].to_dict()["layer"] == "Equilibrium(Cell)"
