"""python -m analyze.existence: what a model's outliers look like in x_down, W_down, h and attention."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sysout_jax as so
from analyze.source import Expects, Source, check_out, prepare, progress, settings, tell
from sysout_jax.analyses.existence.page import existence_summary, write_existence_report
from sysout_jax.analyses.measured import measured_by_statistics
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.reports.terminal import fit

PROMPT = "Summer is warm. Winter is cold.\n"  # the paper's


@dataclass(frozen=True)
class Args(Expects, Source):
    """Draw the outliers of a language model (Figures 1 and 13 to 22 of the paper).

    Without --text, --prompt, --num-seqs and --seq-len it reads the paper's prompt, "Summer is warm. Winter is cold.\\n".
    """

    out: Path = Path("out/existence")
    """Directory for existence.json, figures and report.html."""


def main() -> None:
    args = parse(Args, "python -m analyze.existence")
    out = check_out(args.out)
    args.expected()
    if args.text is None and args.prompt is None and not (args.num_seqs or args.seq_len):
        args = dataclasses.replace(args, prompt=PROMPT)
    prepared = prepare(args)
    for note in prepared.notes:
        say(fit(note))
    with progress(prepared.lm, 2) as lm:
        report = so.existence(
            lm,
            prepared.tokens,
            args.tau,
        )
    expectation = args.held_against(
        measured_by_statistics(report.stats, report.tau, prepared.token_text)
    )
    written = partial(
        write_existence_report,
        out,
        report,
        prepared.token_text,
        settings(args, prepared),
        expectation,
    )
    tell(existence_summary(report, prepared.token_text), written, out, expectation)


if __name__ == "__main__":
    run(main)
