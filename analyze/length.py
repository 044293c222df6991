"""python -m analyze.length: which tokens carry outliers as the text grows, with and without BOS."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import sysout_jax as so
from analyze.analysis import Analysed, Shared, finish, say_notes
from analyze.places import check_out
from analyze.source import (
    ClassLists,
    Expects,
    Prepared,
    Source,
    check_bos,
    prepare,
    progress,
)
from sysout_jax.analyses.length.measure import SENTENCES, sweep_lengths
from sysout_jax.analyses.length.page import length_summary, verdict, write_length_report
from sysout_jax.analyses.measured import measured_by_length
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run


@dataclass(frozen=True)
class Args(Expects, Source, ClassLists):
    """Read the four sentences of the paper's appendix D.3, and growing beginnings of a text with and without BOS.

    --seq-len is the longest beginning; --bos starts the four sentences with BOS.
    """

    NAME: ClassVar[str] = "length"

    out: Path = Path("out/length")
    """Directory for length.json, figures and report.html."""


def analyse(args: Args, prepared: Prepared, shared: Shared) -> Analysed:
    """The windows begin without BOS: the sweep adds it itself."""
    report, text = (
        so.by_length(shared.lm, shared.tokens, args.tau, bos=args.bos, classes=args.load_classes()),
        prepared.token_text,
    )
    return Analysed(
        headline=verdict(report),
        summary=length_summary(report),
        write=lambda out, *rest: write_length_report(out, report, text, *rest),
        measured=measured_by_length(report, text),
    )


def main() -> None:
    args = parse(Args, "python -m analyze.length")
    out = check_out(args.out, args.files(), *args.places_read())
    args.expected()
    args.load_classes()  # what is wrong with them should not show after minutes
    prepared = prepare(dataclasses.replace(args, bos=False))
    assert prepared.lm.tokenizer is not None
    check_bos(args.bos, prepared.lm.tokenizer)
    say_notes(prepared)
    texts = len(SENTENCES) + 2 * len(sweep_lengths(prepared.tokens.shape[1]))
    with progress(prepared.lm, texts) as lm:
        analysed = analyse(args, prepared, Shared(lm, prepared, args.tau, args.seed))
    finish(analysed, args, prepared, out)


if __name__ == "__main__":
    run(main)
