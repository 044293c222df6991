"""A thin wrapper around the `tokenizers` library: ids without special tokens, and one printable string per token."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import tokenizers

from sysout_jax.errors import InputError

FILE = "tokenizer.json"


class Tokenizer:
    """Text to ids and back. `bos_id` is the id that opens a sequence, None where the model names none."""

    def __init__(self, backend: tokenizers.Tokenizer, bos_id: int | None = None):
        self.backend = backend
        self.bos_id = bos_id

    @classmethod
    def from_file(cls, path: Path, bos_id: int | None = None) -> Tokenizer:
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every kind of damage
            raise InputError(
                f"{path}: not a readable tokenizer.json ({error}); download it again"
            ) from None
        return cls(backend, bos_id)

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids, without BOS or other special tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def _byte_level(self) -> dict[str, int] | None:
        """GPT-2's printable stand-ins for bytes, where this vocabulary uses them."""
        spec = json.loads(self.backend.to_str())
        if "ByteLevel" not in json.dumps([spec.get("decoder"), spec.get("pre_tokenizer")]):
            return None
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in plain]
        return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}

    def token(self, token_id: int) -> str:
        """The token as a reader should see it: spaces as `_`, line ends as `\\n`, bytes that are no text as `<0x0A>`."""
        piece = self.backend.id_to_token(int(token_id))
        if piece is None:
            return f"[{int(token_id)}]"
        if self._byte_level and all(c in self._byte_level for c in piece):
            raw = bytes(self._byte_level[c] for c in piece)
            try:
                piece = raw.decode()
            except UnicodeDecodeError:
                return "".join(f"<0x{b:02X}>" for b in raw)
        if piece.startswith("<0x") and len(piece) == 6:
            byte = chr(int(piece[3:5], 16))
            piece = byte if byte in "\n\t\r" or (byte.isprintable() and byte.isascii()) else piece
        return (
            piece.replace("▁", "_")
            .replace(" ", "_")
            .replace("\n", "\\n")
            .replace("\t", "\\t")
            .replace("\r", "\\r")
        )
