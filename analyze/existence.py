"""python -m analyze.existence: what a model's outliers look like in x_down, W_down, h and attention."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import sysout_jax as so
from analyze.analysis import Analysed, Shared, run_alone
from analyze.source import Expects, Prepared, Source
from sysout_jax.analyses.existence.page import existence_summary, verdict, write_existence_report
from sysout_jax.analyses.measured import measured_by_statistics
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run

PROMPT = "Summer is warm. Winter is cold.\n"  # the paper's


@dataclass(frozen=True)
class Args(Expects, Source):
    """Draw the outliers of a language model (Figures 1 and 13 to 22 of the paper).

    Without --text, --prompt, --num-seqs and --seq-len it reads the paper's prompt, "Summer is warm. Winter is cold.\\n".
    """

    NAME: ClassVar[str] = "existence"

    out: Path = Path("out/existence")
    """Directory for existence.json, figures and report.html."""


def analyse(args: Args, prepared: Prepared, shared: Shared) -> Analysed:
    report, text = (
        so.existence(shared.lm, shared.tokens, args.tau, stats=shared.stats),
        prepared.token_text,
    )
    return Analysed(
        headline=verdict(report),
        summary=existence_summary(report, text),
        write=lambda out, *rest: write_existence_report(out, report, text, *rest),
        measured=measured_by_statistics(report.stats, report.tau, text),
    )


def main() -> None:
    args = parse(Args, "python -m analyze.existence")
    if args.text is None and args.prompt is None and not (args.num_seqs or args.seq_len):
        args = dataclasses.replace(args, prompt=PROMPT)
    run_alone(args, analyse, passes=2)


if __name__ == "__main__":
    run(main)
