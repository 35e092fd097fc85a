"""How a solution is shown in a notebook, and its numbers for a data frame."""

import json
import re
import xml.etree.ElementTree as ET

import torch

from solvers import Picard, solve


def solution(b=(0.1, 0.2, 0.3)):
    column = torch.tensor(b).view(-1, 1)
    return solve(lambda z, b: z**2 + b, torch.zeros_like(column), (column,), solver=Picard(), rtol=1e-5, max_steps=20)


def test_numbers_are_plain_and_one_a_row():
    one = solution()
    numbers = json.loads(json.dumps(one.to_dict()))
    assert numbers["status"] == ["CONVERGED", "CONVERGED", "DIVERGED"]
    assert numbers["steps"] == one.steps.tolist()
    assert all(len(values) == 3 for values in numbers.values())


def test_the_page_is_a_table_of_statuses_and_a_falling_line():
    page = ET.fromstring(f"<div>{solution()._repr_html_()}</div>")
    lines = [[cell.text for cell in line] for line in page.find("table/tbody")]
    assert [(line[0], line[1]) for line in lines] == [("CONVERGED", "2"), ("DIVERGED", "1")]
    points = page.find("svg/polyline").get("points").split()
    assert len(points) > 5
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[0] < heights[-1]  # down the page
    assert len(solution()._repr_html_()) < 3000


def test_the_line_does_not_jump_when_rows_leave():
    factors = torch.tensor([[0.1], [0.1], [0.9]])
    one = solve(lambda z, a: a * z + 1, torch.zeros(3, 1), (factors,), solver=Picard(), rtol=1e-5)
    points = ET.fromstring(one.curve()).find("polyline").get("points").split()
    assert len(points) == len(one.trace) > one.steps.min()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights)  # down the page, or level


def test_batches_without_rows_or_steps_have_a_page():
    empty = solution(b=())
    assert "<table>" in empty._repr_html_()
    assert "svg" not in empty._repr_html_()
    assert empty.to_dict()["status"] == []
    failed = solve(lambda z: z * float("nan"), torch.ones(2, 1), solver=Picard())
    assert re.search("NON_FINITE</td><td>2", failed._repr_html_())
