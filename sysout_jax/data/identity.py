"""Which data a directory holds: the number of tokens of each file, and a hash of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sysout_jax.data.token_files import SPLITS, bin_path, open_tokens
from sysout_jax.errors import InputError

WHOLE = 1 << 28  # bytes; larger files are hashed in parts
PARTS, PART = 512, 1 << 17  # parts of so many bytes, spread evenly over a large file


def identity(directory: Path) -> dict[str, dict[str, Any]]:
    """`{"train.bin": {"tokens": …, "hash": …}, …}`; InputError when a file cannot be read.

    The hash covers the whole file up to 256 MiB. Beyond, it covers 512 parts of 128 KiB, its first and last bytes among them: a
    file of 100 GB takes no longer, and a stretch that was replaced is seen when it is longer than the distance of two parts.
    """
    held = {}
    for split in SPLITS:
        path = bin_path(directory, split)
        tokens = int(open_tokens(directory, split).size)
        try:
            held[path.name] = {"tokens": tokens, "hash": _hash(path)}
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; expected a readable file") from None
    return held


def check_identity(
    directory: Path, now: Mapping[str, Mapping[str, Any]], written: Mapping[str, Mapping[str, Any]]
) -> None:
    """InputError, with the file, when the data in `directory`, whose identity is `now`, is not that whose identity was `written`."""
    for name, then in written.items():
        if now.get(name) != then:
            tokens = now.get(name, {}).get("tokens")
            which = "others" if tokens == then["tokens"] else f"{tokens:,}"
            raise InputError(
                f"{Path(directory) / name}: the run was trained on {then['tokens']:,} tokens, these are {which}; name the data it was "
                "trained on, or a new directory for another run"
            )


def _hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE:
            while block := file.read(1 << 20):
                digest.update(block)
        else:
            for part in range(PARTS):
                file.seek((size - PART) * part // (PARTS - 1))
                digest.update(file.read(PART))
    return digest.hexdigest()
