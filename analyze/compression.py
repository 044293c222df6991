"""python -m analyze.compression: perplexity under quantisation and pruning, and what outliers have to do with it, as a report."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

import sysout_jax as so
from analyze.analysis import Analysed, Shared, finish, say_notes
from analyze.limits import MOST, MOST_SEEDS, check_count
from analyze.places import check_out
from analyze.prefix import prefix_tokens
from analyze.source import (
    Expects,
    Prepared,
    Source,
    cut,
    prepare,
    progress,
)
from sysout_jax.analyses.absorb.search import chosen, search
from sysout_jax.analyses.compression.measure import compression
from sysout_jax.analyses.compression.page import summary, verdict, write_compression_report
from sysout_jax.analyses.compression.results import Compression
from sysout_jax.analyses.measured import measured_by_compression
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run
from sysout_jax.compress.absorption import absorbed, prefix_keys, refusal
from sysout_jax.compress.methods import METHODS, USUAL_METHODS, Settings
from sysout_jax.data.demo import demo_text
from sysout_jax.data.text import read_text, text_windows
from sysout_jax.printable import printable_name

FOLLOWING = 2  # windows that scales are calibrated on
SEARCH, ALL, NONE = "search", "all", "none"


@dataclass(frozen=True)
class Args(Expects, Source):
    """Measure perplexity under quantisation and pruning, and attribute the error to layers and outliers."""

    NAME: ClassVar[str] = "compression"

    # every method is a pass: the default study takes a minute or two for a model of 135 M parameters on a laptop
    NUM_SEQS: ClassVar[int] = 2
    LENGTH: ClassVar[int] = 512
    LEAST: ClassVar[int] = 2

    compare: tuple[str, ...] = ()
    """More checkpoints, shown side by side with --ckpt."""
    methods: tuple[str, ...] = USUAL_METHODS
    """Which methods, or the word all; an unknown name lists them."""
    attribute: tuple[str, ...] = ()
    """Methods whose error is attributed to layers and outliers, for example w8_tensor w8a8_static. Each takes as long as the default study."""
    sparsity: tuple[float, ...] = (0.5,)
    """Shares of weights that the pruning methods remove."""
    group_size: int = 64
    """Inputs that share a scale in the per-group methods."""
    alpha: float = 0.5
    """Migration strength of SmoothQuant, 0 to 1."""
    embeddings: bool = False
    """Compress the weights of embeddings and head as well."""
    calibration: Path | None = None
    """Text for static ranges and SmoothQuant, read as --text is. Default: the 2 windows that follow the analysed ones, where the text has them."""
    absorb: str | None = None
    """Show the model with this prefix absorbed beside it: text (\\n is a line end), token ids (198 or 0,198), or the word search to look for one."""
    seeds: int = 2
    """Random controls per kind of weights kept in full precision."""
    out: Path = Path("out/compression")
    """Directory for compression.json, figures and report.html."""

    def places_read(self) -> list[str | Path | None]:
        return [*super().places_read(), *self.compare]


def main() -> None:
    args = parse(Args, "python -m analyze.compression")
    out = check_out(args.out, args.files(), *args.places_read())
    args.expected()
    if ALL in args.methods:
        args = dataclasses.replace(args, methods=tuple(METHODS))
    if args.attribute == (NONE,):
        args = dataclasses.replace(args, attribute=())
    _check(args)
    if args.calibration is not None:
        read_text(args.calibration)  # a missing file should not show after minutes
    ckpts = (args.ckpt, *args.compare)
    sources = [dataclasses.replace(args, ckpt=ckpt) for ckpt in ckpts]
    prepared = [prepare(source) for source in sources]
    say_notes(*prepared)
    results = []
    for each in prepared:
        calibration = _calibration(args, each)
        beside = [] if args.absorb is None else [_absorbed(args.absorb, each, calibration)]
        for read in (each, *beside):
            with progress(read.lm) as lm:
                results.append(_measure(args, read, lm, calibration))
    finish(_analysed(results), args, prepared[0], out, others=prepared[1:])


def analyse(args: Args, prepared: Prepared, shared: Shared) -> Analysed:
    """On windows of its own: every method is a pass, so that it reads fewer of them than the others do."""
    if args.prompt is None and args.data is None:
        prepared = Prepared(shared.lm, *cut(args, shared.lm, _text(args)))
    analysed = _analysed([_measure(args, prepared, shared.lm, _calibration(args, prepared))])
    return dataclasses.replace(analysed, own=prepared)


def _analysed(results: Sequence[Compression]) -> Analysed:
    return Analysed(
        headline=" ".join(verdict(result) for result in results),
        summary=summary(results),
        write=lambda out, *rest: write_compression_report(out, results, *rest),
        measured=measured_by_compression(results[0]),
    )


def _measure(
    args: Args, prepared: Prepared, lm: so.LanguageModel, calibration: np.ndarray | None
) -> Compression:
    return compression(
        lm,
        prepared.windows,
        methods=args.methods,
        attribute=args.attribute,
        sparsities=args.sparsity,
        settings=Settings(args.group_size, args.alpha, embeddings=args.embeddings),
        calibration_tokens=calibration,
        tau=args.tau,
        seeds=args.seeds,
        seed=args.seed,
    )


def _text(args: Args) -> str:
    return demo_text() if args.text is None else args.text_of(args.text)


def _calibration(args: Args, prepared: Prepared) -> np.ndarray | None:
    """Windows of the other text, or those that follow the analysed ones in theirs; None where there are none of a whole length."""
    assert prepared.lm.tokenizer is not None
    count, length = prepared.tokens.shape
    if args.calibration is not None:
        text = args.text_of(args.calibration)
        return text_windows(prepared.lm.tokenizer, text, count, length, args.bos)
    if args.prompt is not None or args.data is not None:
        return None
    more = count + FOLLOWING
    tokens = text_windows(prepared.lm.tokenizer, _text(args), more, length, args.bos)
    return tokens[count:] if len(tokens) > count else None


def _absorbed(given: str, prepared: Prepared, calibration: np.ndarray | None) -> Prepared:
    """The same windows, read by the model with the prefix absorbed. The search reads what scales are calibrated on."""
    lm = prepared.lm
    if given == SEARCH:
        if reason := refusal(lm.config):
            raise so.InputError(f"--absorb: no prefix can be absorbed into {lm.name}, {reason}")
        prefix = chosen(search(lm, prepared.tokens if calibration is None else calibration)).prefix
    else:
        prefix = tuple(prefix_tokens("--absorb", given, lm))
    made = absorbed(lm, prefix_keys(lm, prefix))
    if prepared.tokens.shape[1] > made.config.context_length:
        raise so.InputError(
            f"--absorb {given}: windows of {prepared.tokens.shape[1]} tokens exceed the {made.config.context_length} "
            "that the prefix leaves of the context; shorten them by --seq-len"
        )
    assert lm.tokenizer is not None
    text = "".join(lm.tokenizer.token(token) for token in prefix)
    return dataclasses.replace(
        prepared, lm=dataclasses.replace(made, name=f"{lm.name}, “{text}” absorbed")
    )


def _check(args: Args) -> None:
    """InputError for flags that cannot work."""
    for flag, names, known in (
        ("--methods", args.methods, (*METHODS, ALL)),
        ("--attribute", args.attribute, tuple(METHODS)),
    ):
        for name in names:
            if name not in METHODS:
                near = difflib.get_close_matches(name.lower(), known, 1, 0.0)[0]
                raise so.InputError(
                    f"{flag} {printable_name(name)}: unknown; did you mean {near}? Known are {', '.join(known)}"
                )
    for sparsity in args.sparsity:
        if not 0 <= sparsity <= 1:
            raise so.InputError(f"--sparsity {sparsity:g}: expected a share from 0 to 1")
    if not 0 <= args.alpha <= 1:
        raise so.InputError(f"--alpha {args.alpha:g}: expected a migration strength from 0 to 1")
    check_count("--group-size", args.group_size, MOST)
    check_count("--seeds", args.seeds, MOST_SEEDS)


if __name__ == "__main__":
    run(main)
