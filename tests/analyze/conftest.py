"""Fixtures of the command tests."""

from pathlib import Path

import pytest

from tests.analyze.command import write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")
