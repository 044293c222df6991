"""Fixtures of the command tests."""

from pathlib import Path

import pytest

from sysout_jax.figures import saving
from tests.analyze.command import write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch):
    """Every figure is drawn to both of its files, in few pixels. The tests of figures are about these."""
    monkeypatch.setattr(saving, "DPI", 20)
