"""python -m train.prepare: text files, or a task, into train.bin, val.bin and meta.json, as nanoGPT lays them out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.data.documents import Source
from sysout_jax.data.prepare import prepare
from sysout_jax.data.prepare_task import prepare_task, source_bigrams
from sysout_jax.data.tasks import bigram_backcopy, sparse_copy
from sysout_jax.data.token_files import Meta
from sysout_jax.errors import InputError
from sysout_jax.printable import escaped, printable_name
from sysout_jax.words import plural


@dataclass(frozen=True)
class Args:
    """Turn text files into token files for training, or draw the sequences of a task whose best loss is known."""

    out: Path
    """Directory to write; must be new or empty."""
    source: tuple[Path, ...] = ()
    """Files to read: .txt and .md hold one document each, .jsonl one a line; plain, .gz or .xz. A task takes its bigram table from
    them; without any, from the 13 thousand characters of English that come with the package."""
    tokenizer: str | None = None
    """A tokenizer.json, a directory that holds one, or bytes: one token per byte, nothing to download. A task is of bytes."""
    field: str = "text"
    """Of a line of .jsonl: the one that holds the text."""
    eos: str | None = None
    """Token that ends every document. Default: <|endoftext|> or what else the tokenizer has for it; without one, documents
    follow each other unmarked."""
    bos_every: int | None = None
    """Cut into windows of so many tokens, each behind a BOS; train with --seq-len of the same. Tasks: 128 if not given."""
    bos: str | None = None
    """Token that opens the windows of --bos-every. Default: the tokenizer's own."""
    val_fraction: float = 0.01
    """Share of the documents that are for validation, chosen by a hash of their text; of a task, of the windows."""
    seed: int = 0
    """Chooses other documents for validation, or draws other windows of a task."""
    workers: int | None = None
    """Processes that tokenise (default: one for each core). Changes nothing in the output."""
    task: Literal["bigram-backcopy", "sparse-copy"] | None = None
    """Draw sequences in place of text: each character by the bigram table, but after one that asks for a copy, the one before it
    again. bigram-backcopy: the --triggers ask (Guo et al. 2024). sparse-copy: any may ask, and its token tells (see --idle)."""
    triggers: str | None = None
    """Of bigram-backcopy: the characters that ask for a copy (default t, e and the space)."""
    idle: float | None = None
    """Of sparse-copy: share of the positions where there is nothing to copy (default 0.5)."""
    windows: int | None = None
    """Of a task: how many to draw for training and validation (default 100,000)."""
    without_bos: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Of a task: windows open with a character in place of BOS."""


#: Flags that mean something for these only; None is text.
_ONLY = {
    "tokenizer": (None,),
    "eos": (None,),
    "bos": (None,),
    "workers": (None,),
    "triggers": ("bigram-backcopy",),
    "idle": ("sparse-copy",),
    "windows": ("bigram-backcopy", "sparse-copy"),
    "without_bos": ("bigram-backcopy", "sparse-copy"),
}


def main() -> None:
    args = parse(Args, "python -m train.prepare")
    for name, kinds in _ONLY.items():
        value = getattr(args, name)
        if value is not None and value is not False and args.task not in kinds:  # 0 is a value
            what = f"--task {args.task}" if args.task else "text without a --task"
            raise InputError(f"--{name.replace('_', '-')}: means nothing for {what}; leave it out")
    if args.bos_every is not None and not 1 <= args.bos_every < 2**31:
        raise InputError(
            f"--bos-every {printable_name(str(args.bos_every))}: expected at least 1 and at most {2**31 - 1:,}"
        )
    sources = [Source(path, args.field) for path in args.source]
    meta = _draw(args, sources) if args.task else _tokenise(args, sources)
    for split, count in meta.splits.items():
        documents = plural(count["documents"], "document")
        say(f"{split:6}{count['tokens']:>16,} tokens, {documents}")
    if meta.split_rule["rule"] == "tail":
        say(
            f"The last {args.val_fraction:g} of the tokens is for validation: the documents are too few to divide."
        )
    if meta.task:
        say(f"The exact model has a loss of {meta.task['loss_floor']:.4f} nats a token.")
    elif meta.eos_id is None:
        say("The tokenizer names no end of text (see --eos): documents follow each other unmarked.")
    if meta.windows:
        say(
            f"Windows of {'one character' if meta.windows.bos_id is None else 'BOS'} and {plural(meta.windows.length, 'token')}: "
            f"train with --seq-len {meta.windows.length}."
        )
    say(f"{escaped(str(args.out))}: vocabulary {meta.vocab_size:,}, {meta.dtype}")


def _tokenise(args: Args, sources: list[Source]) -> Meta:
    missing = [f"--{name}" for name in ("source", "tokenizer") if not getattr(args, name)]
    if args.tokenizer is None or missing:
        raise InputError(f"{', '.join(missing)} missing; name both, or a --task")
    if args.bos is not None and args.bos_every is None:
        raise InputError("--bos: nothing is cut into windows; give --bos-every too")
    quiet = not sys.stderr.isatty()
    total = sum(source.size for source in sources)
    with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=quiet) as bar:
        return prepare(
            sources,
            args.tokenizer,
            args.out,
            eos=args.eos,
            bos_every=args.bos_every,
            bos=args.bos,
            val_fraction=args.val_fraction,
            seed=args.seed,
            workers=args.workers,
            on_bytes=bar.update,
        )


def _draw(args: Args, sources: list[Source]) -> Meta:
    if not 0 < args.val_fraction < 1:
        raise InputError(
            f"--val-fraction {args.val_fraction:g}: expected more than 0 and less than 1"
        )
    bigrams = source_bigrams(sources)
    setting: dict[str, Any]
    if args.task == "sparse-copy":
        setting = {"idle": 0.5 if args.idle is None else args.idle}
        task = sparse_copy(bigrams, **setting)
    else:
        setting = {"triggers": "te " if args.triggers is None else args.triggers}
        task = bigram_backcopy(bigrams, **setting)
    windows = 100_000 if args.windows is None else args.windows
    if not 2 <= windows <= 10**9:  # one at least for training, one for validation
        raise InputError(f"--windows {windows}: expected at least 2 and at most {10**9:,}")
    val_windows = max(1, round(args.val_fraction * windows))
    return prepare_task(
        task,
        {"name": args.task, **setting},
        args.out,
        length=128 if args.bos_every is None else args.bos_every,
        windows=windows - val_windows,
        val_windows=val_windows,
        bos=not args.without_bos,
        seed=args.seed,
        sources=sources,
    )


if __name__ == "__main__":
    run(main)
