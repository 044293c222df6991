"""The page over several reports of one model: what each found in one sentence, its first figure, and the way to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from sysout_jax.nonfinite import Nonfinite
from sysout_jax.reports.nonfinite import remarks
from sysout_jax.reports.page import Link, Section, Table
from sysout_jax.reports.report import FIGURES, PAGE, write_report
from sysout_jax.reports.terminal import text_table
from sysout_jax.storage.serialise import read_json_object

NAME = "all"


@dataclass(frozen=True)
class Part:
    """One analysis among several."""

    name: str
    """Also its directory."""
    question: str
    """What it asks, in one line."""
    headline: str
    """What it found in one sentence or, where it is not done, why."""
    seconds: float
    done: bool = True


def write_index(
    out: Path,
    model: str,
    parts: Sequence[Part],
    settings: dict[str, Any],
    nonfinite: Nonfinite | None = None,
) -> list[Path]:
    """Write `all.json` and `report.html` into `out`, where the reports of `parts` are in directories of their names. Returns both paths. Of several
    processes the first one writes. `nonfinite` is what they found of NaN and inf."""
    if jax.process_index() > 0:
        return []
    failed = [part for part in parts if not part.done]
    sections = [
        Section(
            f"{part.name}: {part.question}",
            (
                part.headline,
                Link(
                    f"The report of {part.name}",
                    f"{part.name}/{PAGE}",
                    _picture(out / part.name, part),
                ),
            ),
        )
        for part in parts
        if part.done
    ]
    if failed:
        rows = tuple((part.name, part.headline) for part in failed)
        sections.insert(0, Section("Not done", (Table(("analysis", "why"), rows),)))
    if nonfinite and (lines := remarks(nonfinite)):
        sections.insert(0, Section("Not finite", tuple(lines)))
    seconds = tuple((part.name, f"{part.seconds:.1f}") for part in parts)
    note = "What several analyses need is counted where it is needed first. Numbers of a report are in the JSON file beside it."
    sections.append(Section("Time", (Table(("analysis", "seconds"), seconds, note),)))
    return write_report(
        out,
        NAME,
        f"All analyses: {model}",
        headline=next(part.headline for part in parts if part.done),
        payload={"model": model, "parts": parts, "nonfinite": nonfinite},
        sections=sections,
        figures={},
        settings=settings,
    )


def index_summary(parts: Sequence[Part], nonfinite: Nonfinite | None = None) -> str:
    """For the terminal: one row for each analysis, and what they found of NaN and inf."""
    rows = [
        (p.name, f"{p.seconds:.0f} s", p.headline if p.done else f"not done: {p.headline}")
        for p in parts
    ]
    table = text_table(("analysis", "took", "found"), rows, most=(12, 7, 77))
    return "\n".join([*(remarks(nonfinite) if nonfinite else []), table])


def _picture(directory: Path, part: Part) -> bytes | None:
    """The first figure of its report."""
    figures = read_json_object(directory / f"{part.name}.json", "it was written just now")[
        "figures"
    ]
    if not figures:
        return None
    return (directory / FIGURES / f"{figures[0]}.png").read_bytes()
