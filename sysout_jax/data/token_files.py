"""Data directories in nanoGPT's layout: train.bin and val.bin hold token ids and nothing else, meta.json says how they came about."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.errors import InputError

META = "meta.json"
SPLITS = ("train", "val")
DTYPES = {"uint16": "<u2", "uint32": "<u4"}  # little endian whatever the machine
SCAN = 1 << 24  # tokens looked at in one go


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

    def write(self, directory: Path) -> None:
        (directory / META).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def token_dtype(vocab_size: int) -> str:
    """uint16 where it holds every id, else uint32."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def bin_path(directory: Path, split: str) -> Path:
    return Path(directory) / f"{split}.bin"


def read_meta(directory: Path) -> Meta | None:
    """The directory's meta.json, None where there is none. Raises InputError when it cannot be read."""
    path = Path(directory) / META
    if not path.is_file():
        return None
    try:
        meta = Meta(**json.loads(path.read_text()))
        DTYPES[meta.dtype]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: not written by train.prepare ({error!r}); remove it if the .bin files are uint16"
        ) from None
    return meta


def open_tokens(directory: Path, split: str) -> np.ndarray:
    """The token ids of one split as a read-only memory map, uint16 or uint32.

    Raises InputError when the file is missing, empty, of odd size, or of another length than meta.json says.
    """
    directory, path = Path(directory), bin_path(directory, split)
    if not path.is_file():
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
    if meta and size // dtype.itemsize != meta.splits[split]["tokens"]:
        raise InputError(
            f"{path}: holds {size // dtype.itemsize} tokens, {META} says {meta.splits[split]['tokens']}; copy it again"
        )
    try:
        return np.memmap(path, dtype, mode="r")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a readable file") from None


def check_vocab(directory: Path, split: str, vocab_size: int) -> None:
    """Raises InputError when a token id is not below `vocab_size`.

    Where meta.json names a vocabulary that fits, that settles it; else the file is read once, a few MiB at a time.
    """
    meta = read_meta(directory)
    tokens = open_tokens(directory, split)
    if meta and meta.vocab_size <= vocab_size:
        return
    highest = max(int(tokens[i : i + SCAN].max()) for i in range(0, len(tokens), SCAN))
    if highest >= vocab_size:
        raise InputError(
            f"{bin_path(directory, split)}: holds token id {highest}, the model's vocabulary has {vocab_size} entries; "
            "was the text prepared with this model's tokenizer?"
        )
