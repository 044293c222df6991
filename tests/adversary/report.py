"""The figures of a run: a table per kind for the terminal, JSON, and the tables of docs/reliability.md."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.adversary.judge import Fault
from tests.adversary.kinds import Case

BEGIN, END = "<!-- figures of the last long run -->", "<!-- end of figures -->"
EXAMPLES = 3


@dataclass
class Figures:
    """What happened, by kind; `faults` groups failing cases by signature."""

    rows: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    kills: dict[str, Any] | None = None

    def add(self, case: Case, outcome: dict[str, Any], faults: list[Fault]) -> None:
        row = self.rows[case.kind if case.seed is not None else "corpus"]
        row["cases"] += 1
        row[{0: "accepted", 1: "stopped", 2: "refused"}.get(outcome.get("status"), "other")] += 1
        row["failures"] += bool(faults)
        for fault in faults:
            self.faults[f"{case.kind}  {fault.signature}"].append(case.name)
        if "cpu" in outcome:
            self.seconds.append(outcome["cpu"])
            self.memory.append(outcome["memory"])

    @property
    def failed(self) -> bool:
        return bool(self.faults) or bool(self.kills and self.kills["faults"])

    def to_dict(self) -> dict[str, Any]:
        return {
            "kinds": {name: dict(row) for name, row in sorted(self.rows.items())},
            "cases": sum(row["cases"] for row in self.rows.values()),
            "failures": sum(row["failures"] for row in self.rows.values()),
            "faults": {s: {"cases": len(n), "examples": n[:EXAMPLES]} for s, n in sorted(self.faults.items(), key=lambda x: -len(x[1]))},
            "slowest_seconds": max(self.seconds, default=0.0),
            "most_memory_mib": max(self.memory, default=0.0),
            "kills": self.kills,
            "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        }  # fmt: skip

    def save(self, path: Path | None) -> None:
        """As JSON, where a path is given."""
        if path:
            path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    def table(self) -> str:
        """For the terminal."""
        names = ("cases", "accepted", "refused", "stopped", "other", "failures")
        lines = [f"{'kind':<14}" + "".join(f"{name:>10}" for name in names)]
        total: Counter = sum(self.rows.values(), Counter())
        for kind, row in [*sorted(self.rows.items()), ("all", total)]:
            lines.append(f"{kind:<14}" + "".join(f"{row[name]:>10,}" for name in names))
        for signature, found in sorted(self.faults.items(), key=lambda x: -len(x[1])):
            lines.append(f"{len(found):>5} × {signature}   {' '.join(found[:EXAMPLES])}")
        if self.kills:
            lines.append(kill_lines(self.kills))
        return "\n".join(lines)


def kill_lines(kills: dict[str, Any]) -> str:
    """The table of kills for the terminal."""
    lines = [f"{'kills of':<20}{'SIGINT':>8}{'SIGTERM':>8}{'SIGKILL':>8}{'median s':>10}{'longest s':>10}{'failures':>10}"]  # fmt: skip
    for name, row in kills["commands"].items():
        waits = row["seconds"] or [0.0]
        lines.append(f"{name:<20}" + "".join(f"{row.get(s, 0):>8}" for s in ("SIGINT", "SIGTERM", "SIGKILL")) + f"{statistics.median(waits):>10.2f}{max(waits):>10.2f}{row['failures']:>10}")  # fmt: skip
    lines += [f"{len(found):>5} × {fault}   {' '.join(found[:EXAMPLES])}" for fault, found in kills["faults"].items()]  # fmt: skip
    return "\n".join(lines)


def fill(page: Path, figures: dict[str, Any]) -> None:
    """Replace what stands between the two marks of a page."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{_markdown(figures)}\n{END}{after}")


def _markdown(figures: dict[str, Any]) -> str:
    rows = [f"| {kind} | " + " | ".join(f"{row.get(n, 0):,}" for n in ("cases", "accepted", "refused", "stopped", "failures")) + " |" for kind, row in figures["kinds"].items()]  # fmt: skip
    lines = [
        f"{figures['cases']:,} cases, {figures['failures']} failures; {figures['machine']}. The slowest took {figures['slowest_seconds']:.1f} s "
        f"of processor time, the largest {figures['most_memory_mib']:.0f} MiB beyond what the process held.",
        "",
        "| kind | cases | accepted | refused | stopped | failures |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    if kills := figures["kills"]:
        lines += ["", "| kills of | SIGINT | SIGTERM | SIGKILL | median seconds to the end | longest | failures |", "|---|---|---|---|---|---|---|"]  # fmt: skip
        for name, row in kills["commands"].items():
            waits = row["seconds"] or [0.0]
            counts = " | ".join(str(row.get(s, 0)) for s in ("SIGINT", "SIGTERM", "SIGKILL"))
            lines.append(f"| {name} | {counts} | {statistics.median(waits):.2f} | {max(waits):.2f} | {row['failures']} |")  # fmt: skip
    return "\n".join(lines)
