"""What tests of whole comparisons share."""

import pytest


@pytest.fixture
def latency_of_one_row(monkeypatch):
    """Every latency is that of one row: 256 pictures of 224 × 224 take a minute a pass."""
    monkeypatch.setattr("experiments.measure._repeated", lambda inputs, size: inputs[:1])
