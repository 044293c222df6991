"""Data directories in nanoGPT's layout: train.bin and val.bin hold token ids and nothing else, meta.json says how they came about."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.checks import Is, OrNone, Rule, Whole, Word, check, check_fields
from sysout_jax.errors import InputError
from sysout_jax.printable import printable
from sysout_jax.storage.serialise import read_json_object

META = "meta.json"
SPLITS = ("train", "val")
DTYPES = {"uint16": "<u2", "uint32": "<u4"}  # little endian whatever the machine
SCAN = 1 << 22  # tokens looked at in one go
MOST_SCANNED = (
    1 << 32
)  # bytes of a file that are looked at before a run starts, at several GB a second


@dataclass(frozen=True)
class Windows:
    """From its start on, each `length` + 1 tokens of a file are one window. Where `bos_id` is not None, it is the first of each."""

    length: int
    bos_id: int | None

    def __post_init__(self) -> None:
        check_fields(self, {"length": Whole(), "bos_id": OrNone(Whole(0, 2**32 - 1))}, "windows.")


_RULES: dict[str, Rule] = {
    "tokenizer": Is(str),
    "vocab_size": Whole(1, 2**32),
    "dtype": Word(tuple(DTYPES)),
    "eos_id": OrNone(Whole(0, 2**32 - 1)),
    "eos_token": OrNone(Is(str)),
    "splits": Is(dict),
    "split_rule": Is(dict),
    "sources": Is(list),
    "command": Is(str),
    "versions": Is(dict),
    "windows": OrNone(Is(Windows)),
    "task": OrNone(Is(dict)),
}


@dataclass(frozen=True)
class Meta:
    """What meta.json holds. A directory without one is nanoGPT's own: uint16, vocabulary unknown."""

    tokenizer: str  # as it was asked for; the file itself is tokenizer.json beside this one
    vocab_size: int  # highest id + 1
    dtype: str  # uint16 or uint32
    eos_id: int | None  # ends every document; None where the tokenizer has no such token
    eos_token: str | None
    splits: Mapping[str, Mapping[str, int]]  # train and val: tokens, documents
    split_rule: Mapping[str, Any]  # rule (hash or tail), val_fraction, seed
    sources: list[Mapping[str, Any]]  # path, bytes, documents, empty
    command: str
    versions: Mapping[str, str]
    windows: Windows | None = None  # where the files were cut into windows
    task: Mapping[str, Any] | None = None  # name, settings and loss_floor, of data that was drawn

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        for split, counts in self.splits.items():
            check(f"splits.{split}", counts, Is(dict))
            check(f"splits.{split}.tokens", counts.get("tokens"), Whole(0, 2**63 - 1))

    def write(self, directory: Path) -> None:
        (directory / META).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def token_dtype(vocab_size: int) -> str:
    """uint16 where it holds every id, else uint32."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def bin_path(directory: Path, split: str) -> Path:
    return Path(directory) / f"{split}.bin"


def read_meta(directory: Path) -> Meta | None:
    """The directory's meta.json, None where there is none. Raises InputError when it cannot be read or holds what cannot be."""
    path = Path(directory) / META
    if not os.path.lexists(path):
        return None
    todo = "remove it if the .bin files are uint16"
    fields = read_json_object(path, todo)
    try:
        cut = fields.get("windows")
        return Meta(**fields | {"windows": Windows(**cut) if isinstance(cut, dict) else cut})
    except (TypeError, InputError) as error:
        reason = printable(str(error), 300)
        raise InputError(f"{path}: not written by train.prepare ({reason}); {todo}") from None


def open_tokens(directory: Path, split: str) -> np.ndarray:
    """The token ids of one split as a read-only memory map, uint16 or uint32.

    Raises InputError when the file is missing, empty, of odd size, or of another length than meta.json says.
    """
    directory, path = Path(directory), bin_path(directory, split)
    if not os.path.isfile(path):
        raise InputError(f"{path}: is not there; make it with python -m train.prepare")
    meta = read_meta(directory)
    dtype = np.dtype(DTYPES[meta.dtype if meta else "uint16"])
    size = path.stat().st_size
    if not size:
        raise InputError(f"{path}: is empty; expected token ids, prepare it again with more text")
    if size % dtype.itemsize:
        raise InputError(
            f"{path}: {size} bytes are no whole number of {dtype.name} token ids; copy it again"
        )
    if meta and split not in meta.splits:
        raise InputError(f"{path}: {META} beside it knows no {split}; prepare the data again")
    if meta and size // dtype.itemsize != meta.splits[split]["tokens"]:
        raise InputError(
            f"{path}: holds {size // dtype.itemsize} tokens, {META} says {meta.splits[split]['tokens']}; copy it again"
        )
    try:
        return np.memmap(path, dtype, mode="r")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a readable file") from None


def check_vocab(directory: Path, split: str, vocab_size: int) -> None:
    """Raises InputError when a token id is not below `vocab_size`, whatever meta.json says.

    A file beyond `MOST_SCANNED` is looked at in parts, spread evenly over it; what is trained on is checked again as it is read.
    """
    tokens = open_tokens(directory, split)
    if np.iinfo(tokens.dtype).max < vocab_size:
        return
    for start in _starts(len(tokens), MOST_SCANNED // tokens.itemsize):
        check_ids(tokens[start : start + SCAN], start, bin_path(directory, split), vocab_size)


def check_ids(ids: np.ndarray, start: int, path: Path, vocab_size: int) -> None:
    """Raises InputError when one of the ids, which begin at position `start` of a file, is not below `vocab_size`."""
    if int(ids.max()) >= vocab_size:
        at = int(np.argmax(ids >= vocab_size))
        raise InputError(
            f"{path}: holds token id {ids[at]} at position {start + at:,}, the model's vocabulary has {vocab_size} entries; "
            "was the text prepared with this model's tokenizer?"
        )


def _starts(size: int, most: int) -> Iterable[int]:
    """Where pieces of `SCAN` tokens begin: all of them, or as many as `most` tokens make, the first and the last included."""
    if size <= most:
        return range(0, size, SCAN)
    count = max(most // SCAN, 2)
    return ((size - SCAN) * i // (count - 1) for i in range(count))
