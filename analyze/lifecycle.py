"""python -m analyze.lifecycle: birth, spread, death and cause of a model's outliers, as a report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sysout_jax as so
from analyze.source import Expects, Source, check_out, prepare, progress, settings, tell
from sysout_jax.analyses.lifecycle.page import write_lifecycle_report
from sysout_jax.analyses.lifecycle.summary import lifecycle_summary
from sysout_jax.analyses.measured import measured_by_lifecycle
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.reports.terminal import fit


@dataclass(frozen=True)
class Args(Expects, Source):
    """Find the systematic outliers of a language model and follow them from birth to death."""

    out: Path = Path("out/lifecycle")
    """Directory for lifecycle.json, figures and report.html."""


def main() -> None:
    args = parse(Args, "python -m analyze.lifecycle")
    out = check_out(args.out)
    args.expected()
    prepared = prepare(args)
    for note in prepared.notes:
        say(fit(note))
    with progress(prepared.lm, 4) as lm:
        report = so.lifecycle(
            lm,
            prepared.tokens,
            args.tau,
            seed=args.seed,
        )
    expectation = args.held_against(measured_by_lifecycle(report, prepared.token_text))
    written = partial(
        write_lifecycle_report,
        out,
        report,
        prepared.token_text,
        settings(args, prepared),
        expectation,
    )
    tell(lifecycle_summary(report, prepared.token_text), written, out, expectation)


if __name__ == "__main__":
    run(main)
