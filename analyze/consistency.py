"""python -m analyze.consistency: do the weight, activation and attention outliers of a model coincide?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import sysout_jax as so
from analyze.analysis import Analysed, Shared, run_alone
from analyze.source import Expects, Prepared, Source
from sysout_jax.analyses.consistency.page import (
    consistency_summary,
    verdict,
    write_consistency_report,
)
from sysout_jax.analyses.measured import measured_by_consistency
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run


@dataclass(frozen=True)
class Args(Expects, Source):
    """Test whether the different outliers of a language model sit at the same places (Table 1 of the paper)."""

    NAME: ClassVar[str] = "consistency"
    LENGTH: ClassVar[int] = 2048  # the paper's: a key needs τ / length of all attention

    out: Path = Path("out/consistency")
    """Directory for consistency.json, figures and report.html."""


def analyse(args: Args, prepared: Prepared, shared: Shared) -> Analysed:
    report = so.consistency(shared.lm, shared.tokens, args.tau, stats=shared.stats, seed=args.seed)
    text = prepared.token_text
    return Analysed(
        headline=verdict(report),
        summary=consistency_summary(report),
        write=lambda out, *rest: write_consistency_report(out, report, text, *rest),
        measured=measured_by_consistency(report),
    )


def main() -> None:
    run_alone(parse(Args, "python -m analyze.consistency"), analyse, passes=1)


if __name__ == "__main__":
    run(main)
