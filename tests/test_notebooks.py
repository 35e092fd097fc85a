"""Every notebook is a lesson: short cells, two exercises at its end, outputs that are current; and it runs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from solvers import Status

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LONGEST = 15

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def texts(cell):
    """What the outputs of a code cell say in plain text."""
    return [output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs]


@every_notebook
def test_code_cells_are_short(path):
    lengths = {cell.source.splitlines()[0]: len(cell.source.splitlines()) for cell in cells(path, "code")}
    assert {first: lines for first, lines in lengths.items() if lines > LONGEST} == {}


@every_notebook
def test_it_opens_with_a_question_and_ends_with_two_exercises_and_their_answers_folded_away(path):
    written = nbformat.read(path, as_version=4).cells
    assert written[0].cell_type == written[-2].cell_type == written[-1].cell_type == "markdown"
    assert written[0].source.startswith("# ")
    assert "?" in written[0].source
    exercises, answers = written[-2].source, written[-1].source
    assert "## Exercises" in exercises
    assert answers.startswith("<details><summary>Answers</summary>")
    assert answers.endswith("</details>")
    for text in (exercises.split("## Exercises")[1], answers):
        assert re.findall(r"^\*\*(\d)\.\*\*", text, re.M) == ["1", "2"]


@every_notebook
def test_committed_outputs_are_of_one_run_in_order_without_errors_or_warnings(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
        assert drawn or not re.search(r"plt\.subplots\(|^plot_\w+\(", cell.source, re.M), cell.source
        assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in cell.outputs)


@every_notebook
def test_no_path_of_a_machine_is_committed(path):
    notebook = nbformat.read(path, as_version=4)
    said = str(notebook.metadata) + "".join(
        str(cell.metadata) + "".join(texts(cell) if cell.cell_type == "code" else []) for cell in notebook.cells
    )
    assert not re.search(r"(?<![\w.])/(?:home|tmp|root|usr|opt|Users|work|var)/|[A-Z]:\\\\", said)


@every_notebook
def test_failures_are_told_in_the_words_of_today(path):
    said = "\n".join(text for cell in cells(path, "code") for text in texts(cell))
    for name, message in re.findall(r"^\d+ ([A-Z_]+) \(rows [^)]*\): (.*)$", said, re.M):
        shared = Status[name].message.split(": ")[0]  # what to try depends on the solver
        assert message.startswith(shared)


@pytest.mark.filterwarnings("default")
@every_notebook
def test_it_runs_from_a_clean_kernel_and_shows_what_is_committed(path):
    """The same kinds of output from each cell; numbers differ from machine to machine."""
    notebook = nbformat.read(path, as_version=4)
    committed = [kinds(cell) for cell in notebook.cells if cell.cell_type == "code"]
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert [kinds(cell) for cell in notebook.cells if cell.cell_type == "code"] == committed


def kinds(cell):
    return {kind for output in cell.outputs for kind in (output.get("name", ""), *output.get("data", {}))}


def test_there_are_notebooks():
    assert NOTEBOOKS
