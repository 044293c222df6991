"""A task of `tasks.py` into a data directory: windows of T + 1 tokens, one after the other."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.data import tokenizers
from sysout_jax.data.demo import demo_text
from sysout_jax.data.documents import Source
from sysout_jax.data.prepare import origin
from sysout_jax.data.tasks import BOS, Bigrams, CopyTask, count_bigrams
from sysout_jax.data.token_files import DTYPES, SPLITS, Meta, Windows, bin_path
from sysout_jax.errors import InputError
from sysout_jax.storage import staging

CHUNK = 1 << 14  # windows drawn at a time


def source_bigrams(sources: Sequence[Source]) -> Bigrams:
    """The table of these files, whose documents follow each other unmarked; without any, of the package's demo text in lines of 40."""
    if not sources:
        # in a paragraph of one line, a comma is always followed by a space: backcopy would end in an endless ", , , "
        return count_bigrams(textwrap.fill(line, 40) + "\n" for line in demo_text().splitlines())
    return count_bigrams(
        block for source in sources for document in source.read() for block in document.blocks
    )


def prepare_task(
    task: CopyTask,
    described: dict[str, Any],
    out: Path,
    *,
    length: int,
    windows: int,
    val_windows: int,
    bos: bool = True,
    seed: int = 0,
    sources: Sequence[Source] = (),
) -> Meta:
    """Write the data directory `out`: `windows` of BOS and `length` characters for training, other `val_windows` for validation.

    Without `bos`, a window is `length` + 1 characters.

    meta.json holds `described` (the task's name and settings), the sources of its table, and as `loss_floor` the expected loss of the exact
    model in nats a token. The tokenizer is that of bytes. Raises InputError for bad input and when `out` exists.
    """
    for name, value, least in (
        ("length", length, 2),
        ("windows", windows, 1),
        ("val_windows", val_windows, 1),
    ):
        if value < least:
            raise InputError(f"{name} is {value}; expected at least {least}")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed {seed}: expected a whole number from 0 to 2^64 - 1")
    counts = dict(zip(SPLITS, (windows, val_windows), strict=True))
    meta = Meta(
        tokenizer=tokenizers.BYTES,
        vocab_size=BOS + 1,
        dtype="uint16",
        eos_id=None,
        eos_token=None,
        splits={s: {"tokens": n * (length + 1), "documents": n} for s, n in counts.items()},
        split_rule={"rule": "drawn apart", "seed": seed},
        sources=[{"path": str(source.path), "bytes": source.size} for source in sources],
        windows=Windows(length, BOS if bos else None),
        task=described | {"loss_floor": task.loss_floor(length, bos)},
        **origin(),
    )
    staging.check_out(out, new=True)
    with staging.new_directory(out) as directory:
        tokenizers.copy(tokenizers.BYTES, directory / tokenizers.FILE)
        for number, (split, count) in enumerate(counts.items()):
            rng = np.random.default_rng([seed, number])
            with bin_path(directory, split).open("wb") as file:
                for start in range(0, count, CHUNK):
                    drawn = task.windows(rng, min(CHUNK, count - start), length, bos)
                    file.write(drawn.astype(DTYPES["uint16"]).tobytes())
        meta.write(directory)
    return meta
