"""Text files into a data directory: train.bin, val.bin, meta.json and the tokenizer.json that they were made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.data import tokenizers
from sysout_jax.data.documents import LONGEST_PIECE, Source, pieces
from sysout_jax.data.encoding import Encoder, Piece, Task, encode_in_order
from sysout_jax.data.token_files import DTYPES, SPLITS, Meta, Windows, bin_path, token_dtype
from sysout_jax.errors import InputError
from sysout_jax.printable import printable_name
from sysout_jax.storage import staging
from sysout_jax.version import __version__

TASK_SIZE = 1 << 18  # characters; 0.2 s of a BPE tokenizer
CUT_SIZE = 1 << 12  # windows cut at a time
MOST_WORKERS = 256
BYTES_PER_WORKER = 1 << 22  # of the sources; below that, starting one takes longer than its work


def prepare(
    sources: Sequence[Source],
    tokenizer: str,
    out: Path,
    *,
    eos: str | None = None,
    bos_every: int | None = None,
    bos: str | None = None,
    val_fraction: float = 0.01,
    seed: int = 0,
    workers: int | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Meta:
    """Write the data directory `out`; it appears whole or not at all. Returns what its meta.json says.

    `tokenizer` is "bytes", a tokenizer.json or a directory that holds one. Documents keep their order and are ended with the
    token `eos` (default: the tokenizer's own, see `Tokenizer.end_token`); where there is none, they follow each other unmarked.
    A document is for validation when the hash of its text and `seed` falls below `val_fraction`. Where that leaves a split
    without a document, the text is cut once instead and its last `val_fraction` is for validation.

    With `bos_every`, the tokens are cut into windows of so many, each behind the token `bos` (default: what the tokenizer opens a text
    with, see `Tokenizer.start_token`); documents do not matter to that, and a shorter rest of a split is left out.

    The ids are those of `tokenizer` for each document, but a text that spells out a special token gets the ids of its letters.
    A long document is encoded in pieces: for byte-level BPE tokenizers this changes nothing, others are cut only at
    LONGEST_PIECE characters. In memory there are a few pieces per worker and, of .jsonl, one line.

    `workers` (default: one for each core, fewer for small sources) changes nothing in the output. `on_bytes` is called with
    the number of bytes done since it was last called. Raises InputError for bad input and when `out` exists.
    """
    if not 0 <= val_fraction < 1:
        raise InputError(f"val_fraction {val_fraction:g}: expected at least 0 and less than 1")
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise InputError(
            f"workers {printable_name(str(workers))}: expected 1 to {MOST_WORKERS}, about one for each core"
        )
    if not 0 <= seed < 2**64:
        raise InputError(
            f"seed {printable_name(str(seed))}: expected a whole number from 0 to 2^64 - 1"
        )
    if eos is not None and (not eos or not _is_text(eos)):
        raise InputError(
            f"end token {printable_name(repr(eos))}: no text; name a token of the vocabulary"
        )
    if not sources:
        raise InputError("no source files; name at least one .txt, .md or .jsonl file")
    staging.check_out(out, new=True)
    chosen = tokenizers.load(tokenizer)
    eos = chosen.end_token(eos)
    eos_id = None if eos is None else chosen.backend.token_to_id(eos)
    windows = _windows(chosen, bos_every, bos)
    dtype = token_dtype(chosen.vocab_size)
    arguments = (tokenizer, eos_id, DTYPES[dtype])
    encoder = Encoder(chosen, *arguments)
    tasks = _tasks(sources, TASK_SIZE if encoder.joins() else LONGEST_PIECE, val_fraction, seed)

    with staging.new_directory(out) as directory:
        file = directory / tokenizers.FILE
        tokenizers.copy(tokenizer, file)
        encoded = encode_in_order(
            tasks,
            encoder,
            (file.read_text(encoding="utf-8"), *arguments),
            workers or _workers(sources, tokenizer),
        )
        with closing(encoded):
            documents = _write(directory, encoded, on_bytes)
        rule = "hash"
        if val_fraction and not all(documents.values()):
            rule, documents = "tail", {"train": sum(documents.values()), "val": 0}
            _cut_tail(directory, np.dtype(DTYPES[dtype]), val_fraction)
        if windows:
            for split in SPLITS:
                _cut(bin_path(directory, split), np.dtype(DTYPES[dtype]), windows)
        itemsize = np.dtype(dtype).itemsize
        meta = Meta(
            tokenizer=tokenizer,
            vocab_size=chosen.vocab_size,
            dtype=dtype,
            eos_id=eos_id,
            eos_token=eos,
            splits={
                split: {
                    "tokens": bin_path(directory, split).stat().st_size // itemsize,
                    "documents": documents[split],
                }
                for split in SPLITS
            },
            split_rule={"rule": rule, "val_fraction": val_fraction, "seed": seed},
            sources=[
                {"path": str(s.path), "bytes": s.size, "documents": s.documents, "empty": s.empty}
                for s in sources
            ],
            windows=windows,
            **origin(),
        )
        meta.write(directory)
        return meta


def origin() -> dict[str, Any]:
    """The fields of meta.json that tell how a data directory came about: `command` and `versions`."""
    return {
        "command": shlex.join(sys.orig_argv),
        "versions": {
            "python": platform.python_version(),
            "sysout_jax": __version__,
            **{name: importlib.metadata.version(name) for name in ("tokenizers", "numpy")},
        },
    }


def _windows(
    tokenizer: tokenizers.Tokenizer, length: int | None, bos: str | None
) -> Windows | None:
    """What the files are cut into; None where they are not."""
    if length is None:
        if bos is not None:
            raise InputError(
                f"start token {printable_name(repr(bos))}: nothing is cut into windows; give their length too"
            )
        return None
    if length < 1:
        raise InputError(f"windows of {length} tokens; expected at least 1")
    return Windows(length, tokenizer.backend.token_to_id(tokenizer.start_token(bos)))


def _cut(path: Path, dtype: np.dtype, windows: Windows) -> None:
    """Put BOS before each `length` tokens of a file, in place of it; a rest that fills no window is left out."""
    assert windows.bos_id is not None  # `start_token` names one of the vocabulary
    tokens = np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
    count = len(tokens) // windows.length
    if not count:
        raise InputError(
            f"{path.name} would hold {len(tokens)} tokens, fewer than one window of {windows.length}; bring more text"
        )
    rows = tokens[: count * windows.length].reshape(count, windows.length)
    cut = path.with_name(path.name + ".cut")
    with cut.open("wb") as file:
        for start in range(0, count, CUT_SIZE):
            some = rows[start : start + CUT_SIZE]
            file.write(np.pad(some, ((0, 0), (1, 0)), constant_values=windows.bos_id).data)
        file.flush()
        os.fsync(file.fileno())
    cut.replace(path)


def _tasks(
    sources: Sequence[Source], piece_size: int, val_fraction: float, seed: int
) -> Iterator[Task]:
    batch: list[Piece] = []
    held = done = 0
    for source in sources:
        for document in source.read(seed):
            split = "val" if document.hash < val_fraction else "train"
            for text in pieces(document.blocks, piece_size):
                batch.append(Piece(split, text, ends=False))
                held += len(text)
                if held >= TASK_SIZE:
                    yield Task(batch, done + source.position)
                    batch, held = [], 0
            batch.append(Piece(split, "", ends=True))
        done += source.size
    yield Task(batch, done)


def _write(
    directory: Path,
    encoded: Iterable[tuple[Task, Mapping[str, np.ndarray]]],
    on_bytes: Callable[[int], object],
) -> dict[str, int]:
    """Write what has been encoded as it comes; returns the documents of each split."""
    documents = dict.fromkeys(SPLITS, 0)
    done = 0
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(bin_path(directory, split).open("wb")) for split in SPLITS
        }
        for task, ids in encoded:
            for split, array in ids.items():
                files[split].write(
                    array.view(np.uint8).data
                )  # unlike tofile, it says why when it fails
            for piece in task.pieces:
                documents[piece.split] += piece.ends
            on_bytes(task.position - done)
            done = task.position
        for file in files.values():
            os.fsync(file.fileno())  # before the directory takes its name
    return documents


def _cut_tail(directory: Path, dtype: np.dtype, val_fraction: float) -> None:
    """All tokens lie in one of the files, in order: leave the last `val_fraction` of them to val.bin."""
    train, val = (bin_path(directory, split) for split in SPLITS)
    if not train.stat().st_size:
        val.replace(train)
    total = train.stat().st_size // dtype.itemsize
    keep = total - max(1, round(val_fraction * total))
    if keep < 1:
        raise InputError(f"the sources hold {total} tokens; expected enough for train and val")
    np.memmap(train, dtype, mode="r")[keep:].tofile(val)
    os.truncate(train, keep * dtype.itemsize)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _workers(sources: Sequence[Source], tokenizer: str) -> int:
    if tokenizer == tokenizers.BYTES:
        return 1  # as fast as the reading
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 1 + sum(source.size for source in sources) // BYTES_PER_WORKER)
