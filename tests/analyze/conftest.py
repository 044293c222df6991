"""Fixtures of the command tests."""

from pathlib import Path

import pytest

from sysout_jax.figures import saving
from tests.analyze.command import write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def coarse_figures(monkeypatch):
    """Every figure is drawn to both of its files, in this process, in few pixels and with outlines for text: a second process
    and fonts cut down for each PDF take most of the time of a small model's report. The tests of figures are about these.
    """
    monkeypatch.setattr(saving, "DPI", 20)
    monkeypatch.setitem(saving.STYLE, "pdf.fonttype", 3)
    monkeypatch.setattr(saving, "FEW", 1000)
