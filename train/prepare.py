"""python -m train.prepare: text files into train.bin, val.bin and meta.json, as nanoGPT lays them out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.data.documents import Source
from sysout_jax.data.prepare import prepare


@dataclass(frozen=True)
class Args:
    """Turn text files into token files for training."""

    source: tuple[Path, ...]
    """Files to read: .txt and .md hold one document each, .jsonl one a line; plain, .gz or .xz."""
    tokenizer: str
    """A tokenizer.json, a directory that holds one, or bytes: one token per byte, nothing to download."""
    out: Path
    """Directory to write; must be new or empty."""
    field: str = "text"
    """Of a line of .jsonl: the one that holds the text."""
    eos: str | None = None
    """Token that ends every document. Default: <|endoftext|> or what else the tokenizer has for it; without one, documents
    follow each other unmarked."""
    val_fraction: float = 0.01
    """Share of the documents that are for validation, chosen by a hash of their text."""
    seed: int = 0
    """Chooses other documents for validation."""
    workers: int | None = None
    """Processes that tokenise (default: one for each core). Changes nothing in the output."""


def main() -> None:
    args = parse(Args, "python -m train.prepare")
    sources = [Source(path, args.field) for path in args.source]
    quiet = not sys.stderr.isatty()
    total = sum(source.size for source in sources)
    with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=quiet) as bar:
        meta = prepare(
            sources,
            args.tokenizer,
            args.out,
            eos=args.eos,
            val_fraction=args.val_fraction,
            seed=args.seed,
            workers=args.workers,
            on_bytes=bar.update,
        )
    for split, count in meta.splits.items():
        say(f"{split:6}{count['tokens']:>16,} tokens{count['documents']:>12,} documents")
    if meta.split_rule["rule"] == "tail":
        say(
            f"The last {args.val_fraction:g} of the tokens is for validation: the documents are too few to divide."
        )
    if meta.eos_id is None:
        say("The tokenizer names no end of text (see --eos): documents follow each other unmarked.")
    say(f"{args.out}: vocabulary {meta.vocab_size:,}, {meta.dtype}")


if __name__ == "__main__":
    run(main)
