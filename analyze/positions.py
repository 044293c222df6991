"""python -m analyze.positions: in which layers, tokens, channels, matrices, keys and heads a model's outliers are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import sysout_jax as so
from analyze.analysis import Analysed, Shared, run_alone
from analyze.source import ClassLists, Expects, Prepared, Source
from sysout_jax.analyses.measured import measured_by_positions
from sysout_jax.analyses.positions.page import positions_summary, verdict, write_positions_report
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run


@dataclass(frozen=True)
class Args(Expects, Source, ClassLists):
    """Find where the outliers of a language model are (Figures 3 to 6 of the paper)."""

    NAME: ClassVar[str] = "positions"

    out: Path = Path("out/positions")
    """Directory for positions.json, figures and report.html."""


def analyse(args: Args, prepared: Prepared, shared: Shared) -> Analysed:
    classes, text = args.load_classes(), prepared.token_text
    report = so.positions(shared.lm, shared.tokens, args.tau, classes=classes, stats=shared.stats)
    return Analysed(
        headline=verdict(report),
        summary=positions_summary(report, text),
        write=lambda out, *rest: write_positions_report(out, report, classes, text, *rest),
        measured=measured_by_positions(report, text),
    )


def main() -> None:
    args = parse(Args, "python -m analyze.positions")
    args.load_classes()  # what is wrong with them should not show after minutes
    run_alone(args, analyse, passes=1)


if __name__ == "__main__":
    run(main)
