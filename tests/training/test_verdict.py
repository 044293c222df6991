"""Several processes of a run come to one verdict about a checkpoint: the worst of theirs."""

from __future__ import annotations

import numpy as np
import pytest

from sysout_jax.checkpoints import run_checkpoints
from sysout_jax.errors import RunError
from sysout_jax.storage.seal import Damaged, write_seal
from sysout_jax.training import verdict
from sysout_jax.training.verdict import DAMAGED, FINE, NOT_READ, attempt, reason


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "7"
    (path / run_checkpoints.RECORD).mkdir(parents=True)
    (path / run_checkpoints.RECORD / "metadata").write_text("{}")
    write_seal(path)
    return path


@pytest.mark.parametrize(
    ("mine", "other", "want"),
    [
        (None, FINE, None),
        (None, DAMAGED, Damaged),
        (None, NOT_READ, RunError),
        (Damaged("x"), FINE, Damaged),
        (Damaged("x"), NOT_READ, RunError),
        (MemoryError(), DAMAGED, RunError),
    ],
)
def test_the_worst_verdict_is_everybodys(checkpoint, monkeypatch, mine, other, want):
    monkeypatch.setattr(verdict.jax, "process_count", lambda: 2)
    monkeypatch.setattr(verdict, "process_allgather", lambda code: np.array([code, other]))

    def read():
        if mine:
            raise mine
        return "values"

    result, problem = attempt(checkpoint, read)
    assert isinstance(problem, want) if want else problem is None
    assert result == (None if want else "values")


def test_reasons_are_short():
    by_tensorstore = ValueError("OUT_OF_RANGE: a long\nstory [os_error_code='28']")
    assert reason(by_tensorstore) == "No space left on device"
    assert reason(PermissionError(13, "Permission denied")) == "Permission denied"
    assert reason(KeyError("a\x1b[31m" + "b" * 1000)).startswith("KeyError: 'a\\")
    assert len(reason(KeyError("b" * 1000))) < 320
