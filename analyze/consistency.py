"""python -m analyze.consistency: do the weight, activation and attention outliers of a model coincide?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

import sysout_jax as so
from analyze.source import Expects, Source, check_out, prepare, progress, settings
from sysout_jax.cli import run
from sysout_jax.published.measured import measured_by_consistency
from sysout_jax.reports.consistency import consistency_summary, write_consistency_report
from sysout_jax.reports.summary import fit


@dataclass(frozen=True)
class Args(Expects, Source):
    """Test whether the different outliers of a language model sit at the same places (Table 1 of the paper)."""

    out: Path = Path("out/consistency")
    """Directory for consistency.json, figures and report.html."""


def main() -> None:
    args = tyro.cli(Args, prog="python -m analyze.consistency")
    out = check_out(args.out)
    args.expected()
    prepared = prepare(args)
    for note in prepared.notes:
        print(note)
    with progress(2 * prepared.lm.num_layers) as bar:
        report = so.consistency(
            prepared.lm,
            prepared.tokens,
            args.tau,
            seed=args.seed,
            batch_size=args.batch_size,
            on_layer=bar.update,
        )
    print(fit(consistency_summary(report)))
    expectation = args.check(measured_by_consistency(report))
    paths = write_consistency_report(
        out, report, prepared.token_text, settings(args, prepared), expectation
    )
    print(f"Report  {out / 'report.html'} ({len(paths)} files in {out})")


if __name__ == "__main__":
    run(main)
