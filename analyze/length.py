"""python -m analyze.length: which tokens carry outliers as the text grows, with and without BOS."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sysout_jax as so
from analyze.source import ClassLists, Expects, Source, check_out, prepare, progress, settings, tell
from sysout_jax.analyses.length.measure import SENTENCES, sweep_lengths
from sysout_jax.analyses.length.page import length_summary, write_length_report
from sysout_jax.analyses.measured import measured_by_length
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.reports.terminal import fit


@dataclass(frozen=True)
class Args(Expects, Source, ClassLists):
    """Read the four sentences of the paper's appendix D.3, and growing beginnings of a text with and without BOS.

    --seq-len is the longest beginning; --bos starts the four sentences with BOS.
    """

    out: Path = Path("out/length")
    """Directory for length.json, figures and report.html."""


def main() -> None:
    args = parse(Args, "python -m analyze.length")
    out, classes = check_out(args.out), args.load_classes()
    args.expected()
    prepared = prepare(dataclasses.replace(args, bos=False))  # the sweep adds BOS itself
    if args.bos and prepared.lm.tokenizer and prepared.lm.tokenizer.bos_id is None:
        raise so.InputError(
            "--bos was given, but the model's config names no bos_token_id; use --no-bos"
        )
    for note in prepared.notes:
        say(fit(note))
    texts = len(SENTENCES) + 2 * len(sweep_lengths(prepared.tokens.shape[1]))
    with progress(prepared.lm, texts) as lm:
        report = so.by_length(
            lm,
            prepared.tokens,
            args.tau,
            bos=args.bos,
            classes=classes,
        )
    expectation = args.held_against(measured_by_length(report, prepared.token_text))
    written = partial(
        write_length_report, out, report, prepared.token_text, settings(args, prepared), expectation
    )
    tell(length_summary(report), written, out, expectation)


if __name__ == "__main__":
    run(main)
