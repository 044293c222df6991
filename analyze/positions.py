"""python -m analyze.positions: in which layers, tokens, channels, matrices, keys and heads a model's outliers are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sysout_jax as so
from analyze.source import ClassLists, Expects, Source, check_out, prepare, progress, settings, tell
from sysout_jax.analyses.measured import measured_by_positions
from sysout_jax.analyses.positions.page import positions_summary, write_positions_report
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.reports.terminal import fit


@dataclass(frozen=True)
class Args(Expects, Source, ClassLists):
    """Find where the outliers of a language model are (Figures 3 to 6 of the paper)."""

    out: Path = Path("out/positions")
    """Directory for positions.json, figures and report.html."""


def main() -> None:
    args = parse(Args, "python -m analyze.positions")
    out, classes = check_out(args.out), args.load_classes()
    args.expected()
    prepared = prepare(args)
    for note in prepared.notes:
        say(fit(note))
    with progress(prepared.lm, 2) as lm:
        report = so.positions(
            lm,
            prepared.tokens,
            args.tau,
            classes=classes,
        )
    expectation = args.held_against(measured_by_positions(report, prepared.token_text))
    written = partial(
        write_positions_report,
        out,
        report,
        classes,
        prepared.token_text,
        settings(args, prepared),
        expectation,
    )
    tell(positions_summary(report, prepared.token_text), written, out, expectation)


if __name__ == "__main__":
    run(main)
