"""The README's examples run as they stand, one after the other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    namespace = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["explicit"].shape == namespace["proximal"].shape == namespace["parallel"].shape


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()))
def test_links_lead_somewhere(link):
    assert link.startswith("http") or (ROOT / link).exists()
