"""python -m analyze.absorb: a prefix made part of a pretrained model, which removes its outliers without training, as a report."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

import sysout_jax as so
from analyze.analysis import Analysed, finish, say_notes
from analyze.limits import MOST, check_count
from analyze.places import check_out
from analyze.prefix import prefix_tokens
from analyze.source import Prepared, Source, prepare, progress
from sysout_jax.analyses.absorb.page import prefix_name, summary, verdict, write_absorb_report
from sysout_jax.analyses.absorb.search import LONGEST
from sysout_jax.checkpoints import checkpoint
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.compress.prefix_cache import cache_files
from sysout_jax.data.text import Windows, read_text, text_windows
from sysout_jax.printable import escaped
from sysout_jax.storage import staging

WINDOWS, LENGTH, CALIBRATION = 4, 512, 2


@dataclass(frozen=True)
class Args(Source):
    """Find a prefix that takes over the outliers, make its keys and values part of the model, and show what that changes.

    Without --num-seqs and --seq-len it reads 4 windows of 512 tokens.
    """

    NAME: ClassVar[str] = "absorb"

    prefix: str | None = None
    """The prefix, as text (\\n is a line end) or as token ids (198 or 0,198). Default: it is searched for."""
    longest: int = LONGEST
    """Tokens of a prefix that is searched for, at most."""
    calibration: Path | None = None
    """Text for the search and for the scales of quantised inputs. Default: the windows that follow the analysed ones."""
    save: Path | None = None
    """New directory for the absorbed model, which opens with --ckpt; beside its weights lies the prefix as a key-value cache for transformers."""
    out: Path = Path("out/absorb")
    """Directory for absorb.json, figures and report.html."""

    @property
    def windows(self) -> int:
        """Where no other text is given, the windows to calibrate on come behind those to analyse."""
        more = 0 if self.calibration is not None else CALIBRATION
        return (self.num_seqs or WINDOWS) + more


def main() -> None:
    args = parse(Args, "python -m analyze.absorb")
    out = check_out(args.out, args.files(), *args.places_read())
    check_count("--longest", args.longest, 64)
    check_count("--num-seqs", args.num_seqs, MOST - CALIBRATION)
    if args.save is not None:
        _check_save(args.save, args.ckpt)
    if args.calibration is not None:
        read_text(args.calibration)  # a missing file should not show after minutes
    prepared = prepare(args)
    say_notes(prepared)
    prefix = None if args.prefix is None else prefix_tokens("--prefix", args.prefix, prepared.lm)
    prepared, calibration = _divided(
        args, prepared, args.longest if prefix is None else len(prefix)
    )
    with progress(prepared.lm) as lm:
        report = so.absorb(
            lm,
            prepared.windows,
            args.tau,
            prefix=prefix,
            calibration_tokens=calibration,
            longest=args.longest,
        )
    analysed = Analysed(
        headline=verdict(report),
        summary=summary(report),
        write=lambda out, recorded, _: write_absorb_report(
            out, report, prepared.token_text, recorded
        ),
    )
    finish(analysed, args, prepared, out)
    if args.save is not None:  # the report stays where there is no room for the model
        _save(args.save, report)
        say(
            f"Model   {escaped(str(args.save))}: {report.family} with {prefix_name(report)} absorbed, in {report.proof.dtype}"
        )


def _divided(args: Args, prepared: Prepared, taken: int) -> tuple[Prepared, np.ndarray | None]:
    """The windows to analyse, and those to calibrate on; None where the text has no others. Room is left for a prefix of `taken` tokens."""
    windows, lm = prepared.windows, prepared.lm
    tokens = windows.tokens
    if args.seq_len is None and args.prompt is None:
        size = max(1, min(LENGTH, lm.config.context_length - taken))
        pieces = 1 if windows.bos else tokens.shape[1] // size or 1
        tokens = tokens[:, : pieces * size].reshape(pieces * len(tokens), -1)
    calibration = None
    if args.calibration is not None:
        assert lm.tokenizer is not None
        text = args.text_of(args.calibration)
        calibration = text_windows(lm.tokenizer, text, CALIBRATION, tokens.shape[1], args.bos)
    elif len(tokens) > 1 and args.prompt is None:
        wanted = args.num_seqs or WINDOWS
        count = min(wanted, len(tokens) - 1)
        tokens, calibration = tokens[:count], tokens[count : count + CALIBRATION]
    if tokens.shape[1] + taken > lm.config.context_length:
        flag = "--prompt" if args.prompt is not None else f"--seq-len {tokens.shape[1]}"
        raise so.InputError(
            f"{flag}: {tokens.shape[1]} tokens after a prefix of up to {taken} exceed the model's context of "
            f"{lm.config.context_length}; shorten it, or the prefix"
        )
    windows = Windows(tokens, windows.bos, windows.joined_by)
    return dataclasses.replace(prepared, windows=windows), calibration


def _check_save(out: Path, ckpt: str | None) -> None:
    """Refuse what cannot be written before anything is read, and a place inside the model that is read."""
    model = None if ckpt is None else Path(os.path.expanduser(ckpt))  # as `so.load` finds it
    read = () if model is None or not os.path.isdir(model) else (model,)
    try:
        staging.check_out(out, new=True, apart=read)
    except so.InputError as error:
        raise so.InputError(f"--save {error}") from None


def _save(out: Path, report: so.Absorption) -> None:
    clean = report.model
    checkpoint.save(
        out,
        clean.config,
        clean.source,
        report.proof.dtype,
        clean.tokenizer,
        None if clean.tokenizer is None else clean.tokenizer.bos_id,
        accepted=clean.accepted,
        beside=cache_files(clean.config, report.keys, report.name, prefix_name(report)),
    )


if __name__ == "__main__":
    run(main)
