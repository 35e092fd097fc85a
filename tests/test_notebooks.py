"""Every notebook runs from a clean kernel, and its committed outputs hold no error."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_a_clean_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    written = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs or not re.search(r"^plot_\w+\(", cell.source, re.M) for cell in written), (
        "pictures are committed"
    )
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    for cell in written:
        assert not any("Warning" in output.get("text", "") for output in cell.outputs), cell.source


def test_there_are_notebooks():
    assert NOTEBOOKS
