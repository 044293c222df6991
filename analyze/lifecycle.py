"""python -m analyze.lifecycle: birth, spread, death and cause of a model's outliers, as a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from analyze.analysis import Analysed, Shared, run_alone
from analyze.source import Expects, Prepared, Source
from sysout_jax.analyses.lifecycle.page import write_lifecycle_report
from sysout_jax.analyses.lifecycle.summary import lifecycle_summary, verdict
from sysout_jax.analyses.measured import measured_by_lifecycle
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run


@dataclass(frozen=True)
class Args(Expects, Source):
    """Find the systematic outliers of a language model and follow them from birth to death."""

    NAME: ClassVar[str] = "lifecycle"

    out: Path = Path("out/lifecycle")
    """Directory for lifecycle.json, figures and report.html."""


def analyse(args: Args, prepared: Prepared, shared: Shared) -> Analysed:
    report, text = shared.lifecycle, prepared.token_text
    return Analysed(
        headline=verdict(report),
        summary=lifecycle_summary(report, text),
        write=lambda out, *rest: write_lifecycle_report(out, report, text, *rest),
        measured=measured_by_lifecycle(report, text),
    )


def main() -> None:
    run_alone(parse(Args, "python -m analyze.lifecycle"), analyse)


if __name__ == "__main__":
    run(main)
