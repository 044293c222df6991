"""Cases that found a fault: `*.json` here, each a list of {reason, kind, original, edits, command, …}, run in every test run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.adversary.kinds import Case


def cases() -> list[Case]:
    """All of them, in the order of their files."""
    files = sorted(Path(__file__).parent.glob("*.json"))
    return [_case(entry) for file in files for entry in json.loads(file.read_text())]


def _case(entry: dict) -> Case:
    sequences = {name: tuple(entry.get(name, ())) for name in ("same_values", "allowed")}
    return Case(**{"seed": None, **entry, **sequences})
