"""python -m analyze.length: which tokens carry outliers as the text grows, with and without BOS."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro

import sysout_jax as so
from analyze.source import ClassLists, Expects, Source, check_out, prepare, progress, settings
from sysout_jax.cli import run
from sysout_jax.outliers.length import SENTENCES, sweep_lengths
from sysout_jax.published.measured import measured_by_length
from sysout_jax.reports.length import length_summary, write_length_report
from sysout_jax.reports.summary import fit


@dataclass(frozen=True)
class Args(Expects, Source, ClassLists):
    """Read the four sentences of the paper's appendix D.3, and growing beginnings of a text with and without BOS.

    --seq-len is the longest beginning; --bos starts the four sentences with BOS.
    """

    out: Path = Path("out/length")
    """Directory for length.json, figures and report.html."""


def main() -> None:
    args = tyro.cli(Args, prog="python -m analyze.length")
    out, classes = check_out(args.out), args.load_classes()
    args.expected()
    prepared = prepare(dataclasses.replace(args, bos=False))  # the sweep adds BOS itself
    if args.bos and prepared.lm.tokenizer and prepared.lm.tokenizer.bos_id is None:
        raise so.InputError(
            "--bos was given, but the model's config names no bos_token_id; use --no-bos"
        )
    for note in prepared.notes:
        print(note)
    texts = len(SENTENCES) + 2 * len(sweep_lengths(prepared.tokens.shape[1]))
    with progress(texts * prepared.lm.num_layers) as bar:
        report = so.by_length(
            prepared.lm,
            prepared.tokens,
            args.tau,
            bos=args.bos,
            classes=classes,
            batch_size=args.batch_size,
            on_layer=bar.update,
        )
    print(fit(length_summary(report)))
    expectation = args.check(measured_by_length(report, prepared.token_text))
    paths = write_length_report(
        out, report, prepared.token_text, settings(args, prepared), expectation
    )
    print(f"Report  {out / 'report.html'} ({len(paths)} files in {out})")


if __name__ == "__main__":
    run(main)
