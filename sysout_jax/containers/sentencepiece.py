"""sentencepiece's tokenizer.model, and what files made from it have in common.

The file is a protocol buffer, sentencepiece_model.proto: field 1 a piece (1 text, 2 score, 3 type), 2 the training (3 kind of model),
3 the normaliser (2 table of characters, 3 space before the text, 4 spaces made one).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sysout_jax.errors import InputError
from sysout_jax.storage.files import check_readable

SPACE = "▁"
BPE = 2  # kind of model
MOST_BYTES = 1 << 28


class Pieces(NamedTuple):
    """The vocabulary by id, and whether a text gets a space before it."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    """1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte."""
    space_first: bool


def read_pieces(path: Path) -> Pieces:
    """The pieces of a tokenizer.model; InputError for damage, and for models that are no BPE or that change characters."""
    check_readable(path, "download it again", MOST_BYTES)
    pieces = Pieces([], [], [], True)
    kind, space, changes = 1, True, False
    try:
        for number, value in _fields(memoryview(path.read_bytes())):
            told = dict(_fields(value)) if number in (1, 2, 3) else {}
            if number == 1:
                pieces.texts.append(told[1].tobytes().decode())
                pieces.scores.append(struct.unpack("<f", told.get(2, bytes(4)))[0])
                pieces.types.append(int(told.get(3, 1)))
            elif number == 2:
                kind = int(told.get(3, 1))
            elif number == 3:
                space = bool(told.get(3, 1))
                changes = len(told.get(2, b"")) > 0 or bool(told.get(4, 1))
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise InputError(f"{path}: not a whole sentencepiece model; download it again") from None
    if kind != BPE or changes:
        what = "changes characters before it cuts" if kind == BPE else "is no BPE"
        raise InputError(f"{path}: {what}; put the model's tokenizer.json beside it")
    return pieces._replace(space_first=space)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message: integers as int, everything else as bytes; ValueError for what is none."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(wire)
        if length > len(data) - at:
            raise ValueError(length)
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(at)


def implied_merges(
    names: Iterable[str], vocab: Mapping[str, int], scores: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Every way to build a piece from two others, the best-scored piece first, as sentencepiece would choose."""
    merges = []
    for name in names:
        splits = [(name[:i], name[i:]) for i in range(1, len(name))]
        known = [(a, b) for a, b in splits if a in vocab and b in vocab]
        merges += [
            (scores[name], pair) for pair in sorted(known, key=lambda p: (vocab[p[0]], vocab[p[1]]))
        ]
    merges.sort(key=lambda merge: -merge[0])
    return [pair for _, pair in merges]
