"""A thin wrapper around the `tokenizers` library: ids without special tokens, and one printable string per token."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from sysout_jax.checks import shown
from sysout_jax.data import tokenizer_guard
from sysout_jax.errors import InputError
from sysout_jax.printable import escaped, printable_name
from sysout_jax.storage.files import check_readable

FILE = "tokenizer.json"
MOST_BYTES = 1 << 28  # the largest of public models have 34 MB
BYTES = "bytes"  # names the tokenizer of `byte_tokenizer` where a path could stand
END_OF_TEXT = "<|endoftext|>"
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")  # GPT-2, Llama 3, LLaMA, Gemma
START_TOKENS = ("<s>", "<|begin_of_text|>", "<bos>")  # LLaMA, Llama 3, Gemma

_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")
MOST_ID = 2**31 - 1  # tokens are int32


class Tokenizer:
    """Text to ids and back. `bos_id` is the id that opens a sequence, None where the model names none."""

    def __init__(
        self, backend: tokenizers.Tokenizer, bos_id: int | None = None, file: Path | None = None
    ):
        self.backend = backend
        self.bos_id = bos_id
        self.told_adds_bos: bool | None = None
        """What a tokenizer_config.json says of `adds_bos`; None where it does not."""
        self._file = file

    @classmethod
    def from_file(cls, path: Path, bos_id: int | None = None) -> Tokenizer:
        check_readable(path, f"expected a {FILE}, download it again", MOST_BYTES)
        return cls(tokenizer_guard.open_backend(path), bos_id, path)

    @property
    def adds_bos(self) -> bool:
        """Whether the model's own tokenizer starts a text with BOS. Ids of `encode` have none either way."""
        if self.told_adds_bos is not None:
            return self.told_adds_bos and self.bos_id is not None
        return self.bos_id is not None and tokenizer_guard.added_first(self.backend) == self.bos_id

    def save(self, path: Path) -> None:
        """Write a tokenizer.json: the one it was read from byte by byte, else a new one."""
        if self._file:
            shutil.copyfile(self._file, path)
        else:
            path.write_text(self.backend.to_str(pretty=True), encoding="utf-8")

    @cached_property
    def vocab_size(self) -> int:
        """The entries that a model needs: the highest id + 1. InputError when no array of tokens holds that id."""
        return _checked(list(self.backend.get_vocab().values())) + 1

    def end_token(self, name: str | None = None) -> str | None:
        """The token that ends a document: `name`, or the first of END_TOKENS in the vocabulary, or None.

        Raises InputError when the vocabulary does not hold `name`.
        """
        known = [
            t for t in ([name] if name else END_TOKENS) if self.backend.token_to_id(t) is not None
        ]
        if name and not known:
            raise InputError(f"{name!r} is no token of the vocabulary; name one that is")
        return known[0] if known else None

    def start_token(self, name: str | None = None) -> str:
        """The token that opens a sequence: `name`, or what the tokenizer itself puts before a text, or the first of START_TOKENS and
        END_TOKENS (GPT-2 opens with what ends a text) in the vocabulary.

        Raises InputError when the vocabulary holds none of them.
        """
        own = tokenizer_guard.added_first(self.backend)
        first = None if own is None else self.backend.id_to_token(own)
        usual = (first, *START_TOKENS, *END_TOKENS)
        for token in usual if name is None else (name,):
            if token is not None and self.backend.token_to_id(token) is not None:
                return token
        raise InputError(
            f"{name!r} is no token of the vocabulary; name one that is"
            if name is not None
            else "the tokenizer has no token that opens a sequence; name one of its vocabulary"
        )

    def encode(self, text: str) -> list[int]:
        """Token ids, without BOS or other special tokens. Raises InputError for what is no text, and when the tokenizer fails on it."""
        if not isinstance(text, str):
            raise InputError(f"a text is {shown(text)}; expected words")
        ids = tokenizer_guard.encode(self.backend, text)
        _checked(ids)
        return ids

    def decode(self, ids: list[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def _byte_level(self) -> dict[str, int] | None:
        """GPT-2's printable stand-ins for bytes, where this vocabulary uses them."""
        spec = json.loads(self.backend.to_str())
        if "ByteLevel" not in json.dumps([spec.get("decoder"), spec.get("pre_tokenizer")]):
            return None
        return _stand_ins()

    def text(self, token_id: int) -> str:
        """The token's own text: sentencepiece's and byte-level stand-ins undone; bytes that are no text as `<0xC3>`."""
        piece = self.backend.id_to_token(int(token_id))
        if piece is None:
            return f"[{int(token_id)}]"
        if self._byte_level and all(c in self._byte_level for c in piece):
            raw = bytes(self._byte_level[c] for c in piece)
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return "".join(f"<0x{b:02X}>" for b in raw)
        if _BYTE_PIECE.fullmatch(piece):
            byte = chr(int(piece[3:5], 16))
            return byte if byte in "\n\t\r" or (byte.isprintable() and byte.isascii()) else piece
        return piece.replace("▁", " ")

    def token(self, token_id: int) -> str:
        """The token as a reader should see it: its text with spaces as `_`, line ends as `\\n` and control codes as `\\x1b`, at most
        `LONGEST_NAME` characters."""
        shown = self.text(token_id)
        for character, visible in ((" ", "_"), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
            shown = shown.replace(character, visible)
        return printable_name(escaped(shown))


def load(name: str) -> Tokenizer:
    """The tokenizer called "bytes", of a tokenizer.json, or of a directory that holds one. Raises InputError when there is none."""
    return byte_tokenizer() if name == BYTES else Tokenizer.from_file(_file(name))


def copy(name: str, target: Path) -> None:
    """Write the tokenizer.json of what `load` opens under `name`."""
    if name == BYTES:
        target.write_text(byte_tokenizer().backend.to_str(pretty=True), encoding="utf-8")
    else:
        shutil.copyfile(_file(name), target)


def _checked(ids: list[int]) -> int:
    """The highest of these ids, 0 where there is none."""
    highest = max(ids, default=0)
    if highest > MOST_ID:
        raise InputError(
            f"the tokenizer has the id {highest}; expected ids below 2^31, does it belong to this model?"
        )
    return highest


def read_bos_id(fields: Mapping[str, Any], vocab_size: int, source: str) -> int | None:
    """The `bos_token_id` of a config; None where it names none of the model's vocabulary. InputError when it is no whole number."""
    bos_id = fields.get("bos_token_id")
    if bos_id is not None and type(bos_id) is not int:
        raise InputError(
            f"{source}: bos_token_id is {shown(bos_id)}; expected a whole number, or null"
        )
    # -1 is how some say "none"; to a model that starts no sequence with it, a wrong one does no harm
    return bos_id if bos_id is not None and 0 <= bos_id < vocab_size else None


def _file(name: str) -> Path:
    path = os.path.join(name, FILE) if os.path.isdir(name) else name
    if not os.path.isfile(path):
        raise InputError(
            f"tokenizer {printable_name(name)}: {printable_name(path)} is not a file that is there; "
            f"name a {FILE}, a directory that holds one, or {BYTES!r}"
        )
    return Path(path)


def byte_tokenizer(special: str = END_OF_TEXT) -> Tokenizer:
    """One token per UTF-8 byte, its id the byte, and the token `special` as id 256. Nothing to download."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=_stand_ins(), merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([special])
    return Tokenizer(backend, bos_id=backend.token_to_id(special))


def _stand_ins() -> dict[str, int]:
    """GPT-2's printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
