"""python -m analyze.consistency: do the weight, activation and attention outliers of a model coincide?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sysout_jax as so
from analyze.source import Expects, Source, check_out, prepare, progress, settings, tell
from sysout_jax.analyses.consistency.page import consistency_summary, write_consistency_report
from sysout_jax.analyses.measured import measured_by_consistency
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.reports.terminal import fit


@dataclass(frozen=True)
class Args(Expects, Source):
    """Test whether the different outliers of a language model sit at the same places (Table 1 of the paper)."""

    out: Path = Path("out/consistency")
    """Directory for consistency.json, figures and report.html."""


def main() -> None:
    args = parse(Args, "python -m analyze.consistency")
    out = check_out(args.out)
    args.expected()
    prepared = prepare(args)
    for note in prepared.notes:
        say(fit(note))
    with progress(prepared.lm, 2) as lm:
        report = so.consistency(
            lm,
            prepared.tokens,
            args.tau,
            seed=args.seed,
        )
    expectation = args.held_against(measured_by_consistency(report))
    written = partial(
        write_consistency_report,
        out,
        report,
        prepared.token_text,
        settings(args, prepared),
        expectation,
    )
    tell(consistency_summary(report), written, out, expectation)


if __name__ == "__main__":
    run(main)
