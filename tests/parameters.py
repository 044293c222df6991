"""Parameters of tests of which some stand for the others in `make test`; the others run with the endurance tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_endurance(cases: Iterable[Any], usual: Iterable[Any]) -> list[Any]:
    """All cases for `pytest.mark.parametrize`; those that are not in `usual` are marked endurance."""
    cases, usual = list(cases), list(usual)
    unknown = [case for case in usual if case not in cases]
    assert not unknown, unknown
    return [case if case in usual else _later(case) for case in cases]


def _later(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.endurance)
