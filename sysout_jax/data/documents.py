"""Documents out of text files: .txt and .md hold one each, .jsonl one a line; all plain, .gz or .xz."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sysout_jax.data.xz import open_xz
from sysout_jax.errors import InputError

FORMATS = (".txt", ".md", ".jsonl")
UNPACK: dict[str, Callable[[IO[bytes]], Any]] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".xz": open_xz,
}
BLOCK = 1 << 20  # bytes read at a time
LONGEST_PIECE = 1 << 24  # characters; a longer run without a word's end is cut where it stands
WORD_END = re.compile(r"[^\W_](?=\s)")


@dataclass(frozen=True)
class Document:
    """One text. `blocks` is read once, before the next document is asked for."""

    hash: float  # in [0, 1), of text and seed
    blocks: Iterable[str]


class Source:
    """One file of documents. Raises InputError when it cannot be one; what is wrong inside shows while it is read.

    While and after reading: `documents` counts those that hold text, `empty` those that do not, `position` the bytes read
    of the file as it lies on disk, out of `size`.
    """

    def __init__(self, path: Path, field: str = "text"):
        self.path, self.field = Path(path), field
        self.documents = self.empty = self.position = 0
        suffixes = self.path.suffixes[-2:]
        self._packing = suffixes.pop() if suffixes and suffixes[-1] in UNPACK else ""
        self._format = suffixes[-1] if suffixes else ""
        if os.path.isdir(self.path):
            raise InputError(f"{path}: is a directory; name its files, for example {path}/*.jsonl")
        if self._format not in FORMATS:
            raise InputError(
                f"{path}: unknown kind of file; expected .txt, .md or .jsonl, plain or with .gz or .xz"
            )
        try:
            self.path.open("rb").close()
            self.size = self.path.stat().st_size
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; expected a readable file") from None
        if not self.size:
            raise self._without_text()

    def read(self, seed: int = 0) -> Iterator[Document]:
        """Every document with text in it, in order. Raises InputError naming the file, and in .jsonl the line."""
        for document in self._lines(seed) if self._format == ".jsonl" else self._whole(seed):
            self.documents += 1
            yield document
        if not self.documents:
            raise self._without_text()
        self.position = self.size

    def _whole(self, seed: int) -> Iterator[Document]:
        # read twice: the hash decides where the text goes before its first block is passed on
        if any(block.strip() for block in self._blocks()):
            yield Document(_unit_hash(self._blocks(), seed), self._blocks(count=True))

    def _lines(self, seed: int) -> Iterator[Document]:
        with self._open() as (file, raw):
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                text = self._text_of(line, number)
                self.position = raw.tell()
                if text:
                    yield Document(_unit_hash([text], seed), [text])
                else:
                    self.empty += 1

    def _text_of(self, line: bytes, number: int) -> str:
        where = f"{self.path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: not JSON ({error}); expected one JSON object a line"
            ) from None
        if not isinstance(entry, dict):
            raise InputError(f"{where}: holds a {type(entry).__name__}; expected a JSON object")
        text = entry.get(self.field)
        if not isinstance(text, str):
            problem = "is not a string" if self.field in entry else f"is not in {sorted(entry)}"
            raise InputError(f"{where}: field {self.field!r} {problem}; name the field of the text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{where}: holds half of a surrogate pair; expected Unicode text"
            ) from None
        return text

    def _blocks(self, count: bool = False) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with self._open() as (file, raw):
            while block := file.read(BLOCK):
                yield decoder.decode(block)
                if count:
                    self.position = raw.tell()
            yield decoder.decode(b"", final=True)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """The unpacked file, and the file as it lies on disk."""
        try:
            with self.path.open("rb") as raw:
                yield UNPACK[self._packing](raw), raw
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}: not UTF-8 text ({error.reason}); expected text, save it as UTF-8"
            ) from None
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise InputError(
                f"{self.path}: cannot be read to its end ({error}); fetch it again"
            ) from None

    def _without_text(self) -> InputError:
        return InputError(f"{self.path}: holds no text; expected at least one document")


def pieces(blocks: Iterable[str], size: int) -> Iterator[str]:
    """The text of `blocks` again, cut where a word ends after at least `size` characters.

    In byte-level BPE vocabularies such as GPT-2's no token spans the end of a word, so the tokens of the pieces are those of the text.
    """
    held = ""
    for block in blocks:
        held += block
        start = 0
        while len(held) - start > size:
            end = WORD_END.search(held, start + size)
            if end is None and len(held) - start < LONGEST_PIECE:
                break
            cut = min(end.end() if end else len(held), start + LONGEST_PIECE)
            yield held[start:cut]
            start = cut
        held = held[start:]
    if held:
        yield held


def _unit_hash(blocks: Iterable[str], seed: int) -> float:
    """Spreads texts evenly over [0, 1), the same text always to the same place."""
    digest = hashlib.blake2b(digest_size=8, key=str(seed).encode())
    for block in blocks:
        digest.update(block.encode())
    return (int.from_bytes(digest.digest(), "big") >> 11) / 2**53
