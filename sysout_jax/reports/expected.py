"""Expected beside found, as a section of a page, a terminal table and JSON; any analysis can use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sysout_jax.published.expected import (
    DIFFERS,
    MATCH,
    NOT_MEASURED,
    TOLERANCE,
    Check,
    Expected,
    compare,
)
from sysout_jax.reports.page import Section, Table
from sysout_jax.reports.terminal import text_table
from sysout_jax.storage.serialise import plain
from sysout_jax.words import in_layers

_WIDTHS = (42, 22, 18, 12)  # of the columns on the terminal, 100 together with what is between them


class Expectation:
    """A report held against the published values of `name`; differences are a finding, not a failure."""

    def __init__(self, name: str, expected: Sequence[Expected], measured: Mapping[str, Any]):
        self.name = name
        self.checks: tuple[Check, ...] = compare(expected, measured)

    @property
    def verdict(self) -> str:
        """One sentence with the number of each verdict."""
        verdicts = [check.verdict for check in self.checks]
        count = {name: verdicts.count(name) for name in (MATCH, DIFFERS, NOT_MEASURED)}
        return (
            f"Of {len(verdicts)} published values of {self.name}, {count[MATCH]} match, {count[DIFFERS]} differ, "
            f"{count[NOT_MEASURED]} are not measured by this report."
        )

    def section(self) -> Section:
        """For the page."""
        header = ("quantity", "expected", "found", "verdict", "source")
        rows = tuple((_name(c), c.expected, c.found, c.verdict, c.source) for c in self.checks)
        note = (
            f"≈ allows {TOLERANCE:.0%} where the source is a figure; published values depend on text and length. "
            "Layers are counted from 1 unless it says from 0, as the sources do."
        )
        return Section("Expected and found", (self.verdict, Table(header, rows, note)))

    def text(self) -> str:
        """For the terminal."""
        header = ("quantity", "expected", "found", "verdict")
        rows = [(_name(c), c.expected, c.found, c.verdict) for c in self.checks]
        return "\n".join([self.verdict, text_table(header, rows, most=_WIDTHS)])

    def to_dict(self) -> dict:
        return {"name": self.name, "checks": plain(self.checks)}


def _name(check: Check) -> str:
    """The quantity, with its layers counted from 1."""
    return f"{check.quantity}, {in_layers(check.layers)}" if check.layers else check.quantity
